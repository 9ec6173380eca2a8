// Manual pages and shell completions, made from the declarations of the
// commands, so that they cannot fall behind `--help`: platter generate
// man|bash|zsh DIRECTORY.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "tools/command.h"

namespace platter {

// The exit code. args[0] is "generate".
int Generate(CLI::App& root, std::span<const std::unique_ptr<Command>> commands,
             std::span<const std::string> args, Console& console);

// platter-COMMAND.1 in roff; platter.1 for a null command.
std::string ManualPage(CLI::App& root, const Command* command,
                       std::span<const std::unique_ptr<Command>> commands);
std::string BashCompletion(CLI::App& root, std::span<const std::unique_ptr<Command>> commands);
std::string ZshCompletion(CLI::App& root, std::span<const std::unique_ptr<Command>> commands);

}  // namespace platter
