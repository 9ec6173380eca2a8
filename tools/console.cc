#include "tools/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

namespace platter {

StdConsole::StdConsole() : err_is_terminal_(isatty(STDERR_FILENO) == 1) {}

void StdConsole::Out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) failed_ = true;
}

void StdConsole::Err(std::string_view text) {
  std::fflush(stdout);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

unsigned StdConsole::width() const {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

bool StdConsole::Finish() {
  if (std::fflush(stdout) != 0) failed_ = true;
  return !failed_;
}

}  // namespace platter
