#include "tools/manual.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "formats/format.h"
#include "tools/version.h"

namespace platter {
namespace {

// roff: a leading dot or quote starts a request, a backslash an escape, a bare
// dash is a hyphen.
std::string Roff(std::string_view text) {
  std::string out;
  bool line_start = true;
  for (char c : text) {
    if (line_start && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      out += c;
    }
    line_start = c == '\n';
  }
  return out;
}

std::vector<const CLI::Option*> Flags(const CLI::App& app) {
  std::vector<const CLI::Option*> flags;
  for (const CLI::Option* option : app.get_options()) {
    if (!option->get_positional()) flags.push_back(option);
  }
  return flags;
}

bool TakesValue(const CLI::Option& option) { return option.get_type_size_max() > 0; }

// "-f, --format FMT" as the page shows it.
std::string Heading(const CLI::Option& option) {
  std::string text;
  for (const std::string& name : option.get_snames()) text += (text.empty() ? "-" : ", -") + name;
  for (const std::string& name : option.get_lnames()) text += (text.empty() ? "--" : ", --") + name;
  if (TakesValue(option)) text += " " + option.get_type_name();
  return text;
}

std::string Synopsis(const CLI::App& app, std::string_view name) {
  std::string text = fmt::format(".B platter {}\n[\\fIOPTION\\fR]...", Roff(name));
  for (const CLI::Option* option : app.get_options()) {
    if (!option->get_positional()) continue;
    bool optional = !option->get_required();
    text += fmt::format(" {}\\fI{}\\fR{}{}", optional ? "[" : "", option->get_name(),
                        option->get_expected_max() > 1 ? "..." : "", optional ? "]" : "");
  }
  return text + "\n";
}

std::string CommandPage(const CLI::App& app, const Command& command) {
  std::string name(command.name());
  std::string page =
      fmt::format(".TH PLATTER\\-{} 1 \"\" \"platter {}\" \"User Commands\"\n", name, kVersion);
  page += fmt::format(".SH NAME\nplatter\\-{} \\- {}\n", name, Roff(command.summary()));
  page += ".SH SYNOPSIS\n" + Synopsis(app, name);
  page += ".SH OPTIONS\n";
  for (const CLI::Option* option : Flags(app)) {
    page +=
        fmt::format(".TP\n.B {}\n{}\n", Roff(Heading(*option)), Roff(option->get_description()));
  }
  page += ".SH EXAMPLES\n.nf\n" + Roff(command.examples()) + ".fi\n";
  return page + ".SH SEE ALSO\n.BR platter (1)\n";
}

std::string RootPage(std::span<const std::unique_ptr<Command>> commands) {
  std::string page = fmt::format(".TH PLATTER 1 \"\" \"platter {}\" \"User Commands\"\n", kVersion);
  page +=
      ".SH NAME\nplatter \\- read, write, convert, check and compare disk "
      "images\n";
  page +=
      ".SH SYNOPSIS\n.B platter\n\\fICOMMAND\\fR [\\fIOPTION\\fR]... "
      "[\\fIFILE\\fR]...\n.SH COMMANDS\n";
  for (const auto& command : commands) {
    page +=
        fmt::format(".TP\n.BR platter\\-{} (1)\n{}\n", command->name(), Roff(command->summary()));
  }
  page +=
      ".SH FILES THAT IMAGES NAME\n"
      "An image may name a parent or a data file. It is opened only if it lies "
      "in the directory of the\n"
      "image or below it, or below a directory given with \\fB\\-\\-trust\\fR "
      "or in the environment variable\n"
      "\\fBPLATTER_TRUST\\fR (directories with colons between), or with "
      "\\fB\\-\\-allow\\-external\\fR.\n"
      "A parent that is known by its id alone is looked for in the directory of "
      "the image and in those\n"
      "given with \\fB\\-\\-search\\fR, which are trusted too. "
      "\\fB\\-\\-parent\\fR names it outright; either way\n"
      "it has to be the image that was recorded, in the state that was recorded.\n"
      "\\fBplatter info\\fR lists every file an image names without opening "
      "it.\n"
      ".SH NAMES THAT ARE URLS\n"
      "Images are read from http, https, ftp, ftps, tftp, sftp and ssh URLs, and read and written\n"
      "through nbd, nbds, nbd+unix, nbds+unix, nbd+vsock and nbds+vsock. A URL inside an image is "
      "refused\n"
      "without \\fB\\-\\-allow\\-external\\fR. Certificates and SSH host keys are always "
      "verified.\n"
      ".SH ENVIRONMENT\n.TP\n.B PLATTER_TRUST\nSee above.\n.TP\n.B PLATTER_REMOTE_CACHE\n"
      "The default of \\-\\-remote\\-cache.\n.TP\n.B CURL_CA_BUNDLE, SSL_CERT_FILE\n"
      "Certificate authorities for https and ftps instead of the system's.\n.TP\n.B "
      "SOURCE_DATE_EPOCH\n"
      "The time that \\-\\-reproducible writes into images.\n.TP\n.B TMPDIR\n"
      "Where streams that cannot be seeked, and what is unpacked, are kept meanwhile; /var/tmp "
      "without it.\n";
  page += ".SH SEE ALSO\n";
  for (const auto& command : commands) {
    page += fmt::format(".BR platter\\-{} (1){}\n", command->name(),
                        &command == &commands.back() ? "" : ",");
  }
  return page;
}

// The names in the registry, as words.
std::string FormatNames() {
  std::string names;
  for (const Format* format : AllFormats()) {
    if (!names.empty()) names += ' ';
    names += format->name;
  }
  return names;
}

bool TakesFormat(const CLI::Option& option) { return option.get_type_name() == "FMT"; }

// "-f|--format|-F|...": every flag of a command that takes the name of a format.
std::string FormatFlags(CLI::App& root, std::span<const std::unique_ptr<Command>> commands) {
  std::set<std::string> flags;
  for (const auto& command : commands) {
    for (const CLI::Option* option : Flags(*root.get_subcommand(std::string(command->name())))) {
      if (!TakesFormat(*option)) continue;
      for (const std::string& name : option->get_snames()) flags.insert("-" + name);
      for (const std::string& name : option->get_lnames()) flags.insert("--" + name);
    }
  }
  return fmt::format("{}", fmt::join(flags, "|"));
}

std::string FlagWords(const CLI::App& app) {
  std::string words;
  for (const CLI::Option* option : Flags(app)) {
    for (const std::string& name : option->get_snames()) words += " -" + name;
    for (const std::string& name : option->get_lnames()) words += " --" + name;
  }
  return words.empty() ? words : words.substr(1);
}

std::string ZshQuote(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else if (c == '[' || c == ']' || c == ':') {
      out += std::string("\\") + c;
    } else {
      out += c;
    }
  }
  return out;
}

int WriteFile(const std::string& path, const std::string& text, Console& console) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (file) return 0;
  console.Err(fmt::format("platter: cannot write '{}'\n", path));
  return 1;
}

}  // namespace

std::string ManualPage(CLI::App& root, const Command* command,
                       std::span<const std::unique_ptr<Command>> commands) {
  return command ? CommandPage(*root.get_subcommand(std::string(command->name())), *command)
                 : RootPage(commands);
}

std::string BashCompletion(CLI::App& root, std::span<const std::unique_ptr<Command>> commands) {
  std::string names, cases;
  for (const auto& command : commands) {
    std::string name(command->name());
    names += (names.empty() ? "" : " ") + name;
    cases += fmt::format("    {}) flags='{}' ;;\n", name, FlagWords(*root.get_subcommand(name)));
  }
  return fmt::format(
      "# bash completion for platter; made by `platter generate bash`\n"
      "_platter() {{\n"
      "  local word=${{COMP_WORDS[COMP_CWORD]}} "
      "previous=${{COMP_WORDS[COMP_CWORD-1]}} flags=\n"
      "  if ((COMP_CWORD == 1)); then\n"
      "    COMPREPLY=($(compgen -W '{} --help --version' -- \"$word\"))\n"
      "    return\n"
      "  fi\n"
      "  case $previous in\n"
      "    {})\n"
      "      COMPREPLY=($(compgen -W '{}' -- \"$word\")); return ;;\n"
      "    --output) COMPREPLY=($(compgen -W 'human json' -- \"$word\")); "
      "return ;;\n"
      "  esac\n"
      "  case ${{COMP_WORDS[1]}} in\n{}  esac\n"
      "  if [[ $word == -* ]]; then COMPREPLY=($(compgen -W \"$flags\" -- "
      "\"$word\")); fi\n"
      "}}\n"
      "complete -o bashdefault -o default -F _platter platter\n",
      names, FormatFlags(root, commands), FormatNames(), cases);
}

std::string ZshCompletion(CLI::App& root, std::span<const std::unique_ptr<Command>> commands) {
  std::string text =
      "#compdef platter\n# made by `platter generate "
      "zsh`\n_platter() {\n  local -a commands\n  commands=(\n";
  for (const auto& command : commands)
    text += fmt::format("    '{}:{}'\n", command->name(), ZshQuote(command->summary()));
  text +=
      "  )\n  if ((CURRENT == 2)); then\n    _describe command commands\n  "
      "  return\n  fi\n  case $words[2] in\n";
  for (const auto& command : commands) {
    std::string name(command->name());
    text += fmt::format("    {})\n      _arguments \\\n", name);
    for (const CLI::Option* option : Flags(*root.get_subcommand(name))) {
      auto line = [&](const std::string& flag) {
        text += fmt::format(
            "        '*{}[{}]{}' \\\n", flag, ZshQuote(option->get_description()),
            TakesValue(*option)
                ? fmt::format(":{}:{}", ZshQuote(option->get_type_name()),
                              TakesFormat(*option) ? "(" + FormatNames() + ")" : "_files")
                : "");
      };
      for (const std::string& flag : option->get_snames()) line("-" + flag);
      for (const std::string& flag : option->get_lnames()) line("--" + flag);
    }
    text += "        '*:file:_files' ;;\n";
  }
  return text + "  esac\n}\n_platter \"$@\"\n";
}

int Generate(CLI::App& root, std::span<const std::unique_ptr<Command>> commands,
             std::span<const std::string> args, Console& console) {
  if (args.size() != 3) {
    console.Err("platter: usage: platter generate man|bash|zsh DIRECTORY\n");
    return 1;
  }
  const std::string& directory = args[2];
  if (args[1] == "bash")
    return WriteFile(directory + "/platter", BashCompletion(root, commands), console);
  if (args[1] == "zsh")
    return WriteFile(directory + "/_platter", ZshCompletion(root, commands), console);
  if (args[1] != "man") {
    console.Err("platter: generate: give man, bash or zsh\n");
    return 1;
  }
  int code = WriteFile(directory + "/platter.1", ManualPage(root, nullptr, commands), console);
  for (const auto& command : commands) {
    code |= WriteFile(fmt::format("{}/platter-{}.1", directory, command->name()),
                      ManualPage(root, command.get(), commands), console);
  }
  return code;
}

}  // namespace platter
