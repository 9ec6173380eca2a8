#include "base/size.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/bytes.h"

namespace platter {
namespace {

// The digits behind a point, as numerator and denominator.
struct Fraction {
  uint64_t numerator = 0, denominator = 1;
};

// Takes the digits off the front of `text`; nothing where there are none.
std::optional<Fraction> TakeFraction(std::string_view& text) {
  constexpr uint64_t kEnough = 1'000'000'000'000'000'000;  // further digits are less than a byte
  const size_t length = std::min(text.find_first_not_of("0123456789"), text.size());
  if (length == 0) return std::nullopt;
  Fraction fraction;
  for (char digit : text.substr(0, length)) {
    if (fraction.denominator == kEnough) break;
    fraction.numerator = fraction.numerator * 10 + static_cast<uint64_t>(digit - '0');
    fraction.denominator *= 10;
  }
  text.remove_prefix(length);
  return fraction;
}

// The power of two that a suffix stands for.
std::optional<unsigned> SuffixShift(std::string_view suffix) {
  if (suffix.empty() || suffix == "b" || suffix == "B") return 0;
  const size_t power = std::string_view("kmgtpe").find(static_cast<char>(suffix[0] | 0x20));
  const std::string_view rest = suffix.substr(1);
  if (power == std::string_view::npos || !(rest.empty() || rest == "B" || rest == "iB"))
    return std::nullopt;
  return static_cast<unsigned>(10 * (power + 1));
}

}  // namespace

Result<uint64_t> ParseSize(std::string_view text) {
  auto bad = [&] {
    return Fail(Code::kOutOfRange,
                "'{}' is not a size: give bytes or a number with k, M, G, T, P or E",
                Printable(text));
  };
  uint64_t whole = 0;
  const char* const end = text.data() + text.size();
  auto [at, error] = std::from_chars(text.data(), end, whole);
  if (error == std::errc::invalid_argument) return bad();
  const bool too_long = error != std::errc();
  std::string_view rest(at, static_cast<size_t>(end - at));
  std::optional<Fraction> fraction = Fraction();
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    fraction = TakeFraction(rest);
  }
  const std::optional<unsigned> shift = SuffixShift(rest);
  if (!fraction || !shift || (*shift == 0 && fraction->numerator > 0)) return bad();

  using Wide = unsigned __int128;
  const Wide bytes =
      (Wide{whole} << *shift) + (Wide{fraction->numerator} << *shift) / fraction->denominator;
  if (too_long || bytes > INT64_MAX)
    return Fail(Code::kOutOfRange, "'{}' is larger than a disk can be (8 EiB)", Printable(text));
  return static_cast<uint64_t>(bytes);
}

std::string HumanSize(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  // 999.5 would print as 1e+03 with three digits: the next unit comes before that.
  while (unit < 6 && value >= 999.5) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.3g} {}", value, kUnits[unit]);
}

}  // namespace platter
