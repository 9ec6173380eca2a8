#include "tools/command.h"

#include <CLI/CLI.hpp>

#include "tools/interrupt.h"
#include "tools/manual.h"
#include "tools/version.h"

namespace platter {
namespace {

// CLI11's help, with the program's name before a subcommand's, and its examples
// at the end.
void DeclareCommand(CLI::App& root, Command& command) {
  CLI::App* app = root.add_subcommand(std::string(command.name()), std::string(command.summary()));
  app->footer("Examples:\n" + std::string(command.examples()));
  app->set_help_flag("-h,--help", "Print this help and exit");
  command.Declare(*app);
}

int RunParsed(CLI::App& root, std::span<const std::unique_ptr<Command>> commands,
              Console& console) {
  for (const auto& command : commands) {
    if (!root.got_subcommand(std::string(command->name()))) continue;
    int code = command->Run(console);
    return Interrupted() ? 130 : code;
  }
  console.Out(root.help());
  return 1;
}

// The command that `args` name; null if they name none.
const Command* FindCommand(std::span<const std::string> args,
                           std::span<const std::unique_ptr<Command>> commands) {
  for (const auto& command : commands) {
    if (!args.empty() && args[0] == command->name()) return command.get();
  }
  return nullptr;
}

}  // namespace

std::vector<std::unique_ptr<Command>> AllCommands() {
  std::vector<std::unique_ptr<Command>> all;
  all.push_back(MakeInfoCommand());
  all.push_back(MakeCreateCommand());
  all.push_back(MakeConvertCommand());
  all.push_back(MakeCheckCommand());
  all.push_back(MakeCompareCommand());
  all.push_back(MakeMapCommand());
  all.push_back(MakeMeasureCommand());
  all.push_back(MakeResizeCommand());
  all.push_back(MakeAmendCommand());
  all.push_back(MakeCompactCommand());
  all.push_back(MakeSnapshotCommand());
  all.push_back(MakeCommitCommand());
  all.push_back(MakeRebaseCommand());
  all.push_back(MakeStreamCommand());
  all.push_back(MakeCloneCommand());
  all.push_back(MakeBitmapCommand());
  all.push_back(MakeBackupCommand());
  all.push_back(MakeDdCommand());
  all.push_back(MakeHashCommand());
  all.push_back(MakeBenchCommand());
  all.push_back(MakeServeCommand());
  return all;
}

int RunPlatter(std::span<const std::string> args, Console& console) {
  auto commands = AllCommands();
  CLI::App root("Read, write, convert, check and compare disk images.", "platter");
  root.set_help_flag("-h,--help", "Print this help and exit");
  root.set_version_flag("-V,--version", std::string("platter ") + kVersion);
  root.require_subcommand(0, 1);
  root.footer("`platter COMMAND --help` prints a command's options with examples.");
  for (const auto& command : commands) DeclareCommand(root, *command);

  // For packagers: the manual pages and completions are made from the
  // declarations above.
  if (!args.empty() && args[0] == "generate") return Generate(root, commands, args, console);

  std::vector<std::string> reversed(args.rbegin(),
                                    args.rend());  // CLI11 takes them so
  try {
    root.parse(reversed);
  } catch (const CLI::CallForVersion& version) {
    console.Print("platter {}\n", kVersion);
    return 0;
  } catch (const CLI::CallForHelp&) {
    console.Out(root.help());
    return 0;
  } catch (const CLI::ParseError& error) {
    const Command* command = FindCommand(args, commands);
    if (!command && !args.empty() && !args[0].starts_with('-')) {
      console.Err(fmt::format("platter: there is no command '{}'\n", Printable(args[0])));
    } else {
      console.Err(fmt::format("platter: {}\n", error.what()));
    }
    console.Err(fmt::format("Try 'platter {}--help'.\n",
                            command ? std::string(command->name()) + " " : ""));
    return command ? command->usage_exit_code() : 1;
  }
  return RunParsed(root, commands, console);
}

}  // namespace platter
