#include "tools/size.h"

#include <charconv>
#include <cmath>

#include "base/bytes.h"

namespace platter {

Result<uint64_t> ParseSize(std::string_view text) {
  auto bad = [&] {
    return Fail(Code::kOutOfRange,
                "'{}' is not a size: give bytes or a number with k, M, G, T, P or E",
                Printable(text));
  };
  const char* end = text.data() + text.size();
  uint64_t whole = 0;
  auto [rest, error] = std::from_chars(text.data(), end, whole);
  if (error != std::errc{}) return bad();
  uint64_t tenths_scale = 1, fraction = 0;
  bool has_fraction = rest != end && *rest == '.';
  if (has_fraction) {
    ++rest;
    if (rest == end || *rest < '0' || *rest > '9') return bad();
    for (; rest != end && *rest >= '0' && *rest <= '9'; ++rest) {
      if (tenths_scale > 100'000'000'000'000) continue;  // more digits than a byte can show
      fraction = fraction * 10 + static_cast<uint64_t>(*rest - '0');
      tenths_scale *= 10;
    }
  }
  unsigned shift = 0;
  std::string_view suffix(rest, static_cast<size_t>(end - rest));
  if (!suffix.empty() && suffix != "b" && suffix != "B") {
    constexpr std::string_view kLetters = "kmgtpe";
    size_t power = kLetters.find(static_cast<char>(suffix[0] | 0x20));
    std::string_view tail = suffix.substr(1);
    if (power == kLetters.npos || !(tail.empty() || tail == "B" || tail == "iB")) return bad();
    shift = static_cast<unsigned>(10 * (power + 1));
  } else if (has_fraction) {
    return bad();
  }
  unsigned __int128 bytes = static_cast<unsigned __int128>(whole) << shift;
  bytes += (static_cast<unsigned __int128>(fraction) << shift) / tenths_scale;
  if (bytes > INT64_MAX) return Fail(Code::kOutOfRange, "size '{}' is over 8 EiB", Printable(text));
  return static_cast<uint64_t>(bytes);
}

std::string HumanSize(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  // 999.5 prints as 1e+03 with three digits: go on to the next unit before
  // that.
  while (unit < 6 && value >= 999.5) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.3g} {}", value, kUnits[unit]);
}

}  // namespace platter
