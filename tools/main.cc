#include <csignal>
#include <string>
#include <vector>

#include "tools/command.h"
#include "tools/console.h"
#include "tools/interrupt.h"

int main(int argc, char** argv) {
  // A reader that goes away is an error of the write, not a reason to die with
  // files half made.
  std::signal(SIGPIPE, SIG_IGN);
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
