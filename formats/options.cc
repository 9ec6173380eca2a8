#include "formats/options.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "base/bytes.h"
#include "base/size.h"

namespace platter {

namespace {

constexpr OptionHelp kCommonOptions[] = {
    {"backing_file", "name of the parent image, where the format has parents"},
    {"backing_fmt", "format of the parent image"},
    {"size", "size of the disk"},
};

std::unexpected<Error> BadValue(std::string_view name, std::string_view value,
                                std::string_view wanted) {
  return Fail(Code::kUnsupported, "option '{}': '{}' is not {}", name, Printable(value), wanted);
}

std::string_view PreallocationName(Preallocation preallocation) {
  switch (preallocation) {
    case Preallocation::kOff: return "off";
    case Preallocation::kMetadata: return "metadata";
    case Preallocation::kFalloc: return "falloc";
    case Preallocation::kFull: return "full";
  }
  return "";
}

}  // namespace

std::optional<std::string_view> FindOption(const OptionMap& options, std::string_view name) {
  auto found = options.find(std::string(name));
  if (found == options.end()) return std::nullopt;
  return found->second;
}

Result<std::optional<uint64_t>> SizeOption(const OptionMap& options, std::string_view name) {
  auto value = FindOption(options, name);
  if (!value) return std::nullopt;
  return TRY_AS(fmt::format("option '{}'", name), ParseSize(*value));
}

Result<std::optional<uint64_t>> NumberOption(const OptionMap& options, std::string_view name) {
  auto value = FindOption(options, name);
  if (!value) return std::nullopt;
  uint64_t number = 0;
  const char* const end = value->data() + value->size();
  auto [at, error] = std::from_chars(value->data(), end, number);
  if (error != std::errc() || at != end) return BadValue(name, *value, "a number");
  return number;
}

Result<std::optional<bool>> BoolOption(const OptionMap& options, std::string_view name) {
  auto value = FindOption(options, name);
  if (!value) return std::nullopt;
  if (*value == "on" || *value == "yes" || *value == "true" || *value == "y") return true;
  if (*value == "off" || *value == "no" || *value == "false" || *value == "n") return false;
  return BadValue(name, *value, "on or off");
}

Result<std::optional<size_t>> ChoiceOption(const OptionMap& options, std::string_view name,
                                           std::initializer_list<std::string_view> choices) {
  auto value = FindOption(options, name);
  if (!value) return std::nullopt;
  std::string list;
  size_t index = 0;
  for (std::string_view choice : choices) {
    if (*value == choice) return index;
    if (index++ > 0) list += ", ";
    list += choice;
  }
  return BadValue(name, *value, "one of " + list);
}

Result<Preallocation> PreallocationOption(const OptionMap& options,
                                          std::initializer_list<Preallocation> offered) {
  auto value = FindOption(options, "preallocation");
  if (!value || *value == "off") return Preallocation::kOff;
  std::string list = "off";
  for (Preallocation choice : offered) {
    if (*value == PreallocationName(choice)) return choice;
    if (choice != Preallocation::kOff) list += fmt::format(", {}", PreallocationName(choice));
  }
  return BadValue("preallocation", *value, "one of " + list);
}

Result<> TakeCommonOptions(CreateOptions& create) {
  if (auto size = TRY(SizeOption(create.options, "size"))) create.size = *size;
  auto name = FindOption(create.options, "backing_file");
  auto format = FindOption(create.options, "backing_fmt");
  if (name && create.parent) {
    return Fail(Code::kUnsupported, "option 'backing_file': the parent is named already");
  }
  if (name) create.parent = Reference{Reference::kParent, std::string(*name), ""};
  if (format) {
    if (!create.parent) return Fail(Code::kUnsupported, "backing_fmt needs backing_file");
    if (!create.parent->format.empty() && create.parent->format != *format) {
      return Fail(Code::kUnsupported, "option 'backing_fmt': the parent's format is given already");
    }
    create.parent->format = *format;
  }
  for (const OptionHelp& common : kCommonOptions) create.options.erase(std::string(common.name));
  return {};
}

std::vector<OptionHelp> ListCreateOptions(const Format& format) {
  std::vector<OptionHelp> list(std::begin(kCommonOptions), std::end(kCommonOptions));
  list.insert(list.end(), format.create_options.begin(), format.create_options.end());
  std::ranges::sort(list, {}, &OptionHelp::name);
  return list;
}

Result<> CheckOptionNames(std::string_view format, const OptionMap& options,
                          std::span<const OptionHelp> known) {
  for (const auto& [name, value] : options) {
    std::string list;
    bool found = false;
    for (const OptionHelp& option : known) {
      found = found || option.name == name;
      list += fmt::format("{}{}", list.empty() ? "" : ", ", option.name);
    }
    if (!found) {
      return Fail(Code::kUnsupported, "{} has no option '{}'; it has: {}", format, Printable(name),
                  list.empty() ? "none" : list);
    }
  }
  return {};
}

}  // namespace platter
