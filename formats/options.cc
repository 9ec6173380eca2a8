#include "formats/options.h"

#include <charconv>

#include "base/bytes.h"
#include "base/math.h"

namespace platter {

namespace {

// Bits to shift for a size suffix; nothing for a letter that is none.
std::optional<unsigned> SuffixShift(char letter) {
  switch (letter) {
    case 'b':
    case 'B': return 0;
    case 'k':
    case 'K': return 10;
    case 'm':
    case 'M': return 20;
    case 'g':
    case 'G': return 30;
    case 't':
    case 'T': return 40;
    case 'p':
    case 'P': return 50;
    case 'e':
    case 'E': return 60;
    default: return std::nullopt;
  }
}

// The suffix of a size: a letter, optionally followed by "B" or "iB".
std::optional<unsigned> ParseSuffix(std::string_view suffix) {
  if (suffix.empty()) return 0;
  auto shift = SuffixShift(suffix[0]);
  std::string_view rest = suffix.substr(1);
  if (rest.empty() || (shift && *shift > 0 && (rest == "B" || rest == "iB"))) return shift;
  return std::nullopt;
}

// fraction/scale of 2^shift bytes; nothing where that is no whole number.
std::optional<uint64_t> FractionBytes(uint64_t fraction, uint64_t scale, unsigned shift) {
  unsigned __int128 scaled = static_cast<unsigned __int128>(fraction) << shift;
  if (scaled % scale != 0) return std::nullopt;
  return static_cast<uint64_t>(scaled / scale);
}

Result<uint64_t> ParseBytes(std::string_view name, std::string_view text) {
  auto bad = [&](std::string_view reason) {
    return Fail(Code::kOutOfRange, "option '{}': '{}' is {}", name, Printable(text), reason);
  };
  const char* const end = text.data() + text.size();
  uint64_t whole = 0;
  auto [at, error] = std::from_chars(text.data(), end, whole);
  if (error == std::errc::result_out_of_range) return bad("larger than a disk can be");
  if (error != std::errc()) return bad("not a number with an optional suffix k, M, G, T, P or E");

  uint64_t fraction = 0, scale = 1;
  if (at != end && *at == '.') {
    for (++at; at != end && *at >= '0' && *at <= '9'; ++at) {
      if (scale == 1'000'000'000'000'000) return bad("too many digits after the point");
      fraction = fraction * 10 + static_cast<uint64_t>(*at - '0');
      scale *= 10;
    }
  }
  auto shift = ParseSuffix({at, static_cast<size_t>(end - at)});
  if (!shift) return bad("not a number with an optional suffix k, M, G, T, P or E");

  auto bytes = CheckedMultiply(whole, uint64_t{1} << *shift);
  auto extra = FractionBytes(fraction, scale, *shift);
  if (!extra) return bad("not a whole number of bytes");
  auto sum = bytes ? CheckedAdd(*bytes, *extra) : std::nullopt;
  if (!sum || *sum >> 63 != 0) return bad("larger than a disk can be");
  return *sum;
}

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
  return TRY(ParseBytes(name, *value));
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
