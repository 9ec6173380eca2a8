#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <string>
#include <vector>

#include "tools/command.h"
#include "tools/console.h"
#include "tools/interrupt.h"

namespace {
// A disk in splits of 2 GB may be a thousand files, as many as a process may open if nobody says
// otherwise.
void RaiseFileLimit() {
  constexpr rlim_t kFiles = 16384;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= kFiles) return;
  limit.rlim_cur = std::min(limit.rlim_max, kFiles);
  setrlimit(RLIMIT_NOFILE, &limit);
}
}  // namespace

int main(int argc, char** argv) {
  // A reader that goes away is an error of the write, not a reason to die with
  // files half made.
  std::signal(SIGPIPE, SIG_IGN);
  RaiseFileLimit();
  platter::HandleInterrupts();
  platter::StdConsole console;
  std::vector<std::string> args(argv + 1, argv + argc);
  int code = platter::RunPlatter(args, console);
  if (!console.Finish() && code == 0) {
    console.Err("platter: cannot write to standard output\n");
    code = 1;
  }
  return code;
}
