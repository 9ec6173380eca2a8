// Commands of the `platter` tool: each declares its arguments and runs. The
// logic stands in libraries, so that tests call RunPlatter in process with a
// StringConsole.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/console.h"

namespace CLI {
class App;
}

namespace platter {

class Command {
 public:
  virtual ~Command() = default;
  virtual std::string_view name() const = 0;
  virtual std::string_view summary() const = 0;  // one line
  // Printed at the end of --help: examples a user can paste.
  virtual std::string_view examples() const = 0;
  virtual void Declare(CLI::App& app) = 0;
  // The exit code. An error has been reported on the console by then.
  virtual int Run(Console& console) = 0;
  // Exit code for wrong arguments: 1, but qemu-img compare says 2.
  virtual int usage_exit_code() const { return 1; }
};

std::unique_ptr<Command> MakeAmendCommand();
std::unique_ptr<Command> MakeBackupCommand();
std::unique_ptr<Command> MakeBenchCommand();
std::unique_ptr<Command> MakeBitmapCommand();
std::unique_ptr<Command> MakeCheckCommand();
std::unique_ptr<Command> MakeCloneCommand();
std::unique_ptr<Command> MakeCommitCommand();
std::unique_ptr<Command> MakeCompactCommand();
std::unique_ptr<Command> MakeCompareCommand();
std::unique_ptr<Command> MakeConvertCommand();
std::unique_ptr<Command> MakeCreateCommand();
std::unique_ptr<Command> MakeDdCommand();
std::unique_ptr<Command> MakeHashCommand();
std::unique_ptr<Command> MakeInfoCommand();
std::unique_ptr<Command> MakeMapCommand();
std::unique_ptr<Command> MakeMeasureCommand();
std::unique_ptr<Command> MakeRebaseCommand();
std::unique_ptr<Command> MakeResizeCommand();
std::unique_ptr<Command> MakeServeCommand();
std::unique_ptr<Command> MakeSnapshotCommand();
std::unique_ptr<Command> MakeStreamCommand();

// All of them, in the order of `platter --help`.
std::vector<std::unique_ptr<Command>> AllCommands();

// Runs `platter ARGS...`; returns the exit code.
int RunPlatter(std::span<const std::string> args, Console& console);

}  // namespace platter
