#include "formats/foreign_names.h"

#include <algorithm>
#include <cctype>

#include "base/endian.h"

namespace platter {

namespace {

constexpr uint32_t kReplacement = 0xfffd;

uint16_t Load16(ConstBytes text, size_t at, std::endian order) {
  return order == std::endian::big ? uint16_t{*LoadAt<be16>(text, at)}
                                   : uint16_t{*LoadAt<le16>(text, at)};
}

void Append16(std::vector<std::byte>& text, uint32_t unit, std::endian order) {
  auto high = static_cast<std::byte>(unit >> 8), low = static_cast<std::byte>(unit & 0xff);
  text.push_back(order == std::endian::big ? high : low);
  text.push_back(order == std::endian::big ? low : high);
}

void AppendUtf8(std::string& text, uint32_t point) {
  auto add = [&](uint32_t byte) { text += static_cast<char>(byte); };
  auto tail = [&](uint32_t shift) { add(0x80 | (point >> shift & 0x3f)); };
  if (point < 0x80) {
    add(point);
  } else if (point < 0x800) {
    add(0xc0 | point >> 6), tail(0);
  } else if (point < 0x10000) {
    add(0xe0 | point >> 12), tail(6), tail(0);
  } else {
    add(0xf0 | point >> 18), tail(12), tail(6), tail(0);
  }
}

// The code point at the start of `text`, which is shortened by it.
uint32_t TakeUtf8(std::string_view& text) {
  auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  uint32_t lead = at(0);
  size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  uint32_t point = length == 1 ? lead : lead & (0x7fu >> length);
  bool good = length > 0 && lead < 0xf5 && length <= text.size();
  for (size_t i = 1; good && i < length; ++i) {
    good = (at(i) & 0xc0) == 0x80;
    point = point << 6 | (at(i) & 0x3f);
  }
  static constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  good = good && point >= kLeast[length] && point < 0x110000 && (point < 0xd800 || point > 0xdfff);
  text.remove_prefix(good ? length : 1);
  return good ? point : kReplacement;
}

bool HasDrive(std::string_view path) {
  return path.size() >= 2 && path[1] == ':' && std::isalpha(static_cast<unsigned char>(path[0]));
}

}  // namespace

std::string FromUtf16(ConstBytes text, std::endian order) {
  std::string out;
  for (size_t at = 0; at + 2 <= text.size(); at += 2) {
    uint32_t unit = Load16(text, at, order);
    if (unit == 0) break;
    if (unit >= 0xd800 && unit <= 0xdfff) {
      uint32_t next = at + 4 <= text.size() ? Load16(text, at + 2, order) : 0u;
      bool pair = unit <= 0xdbff && next >= 0xdc00 && next <= 0xdfff;
      if (pair) at += 2;
      unit = pair ? 0x10000 + ((unit - 0xd800) << 10) + (next - 0xdc00) : kReplacement;
    }
    AppendUtf8(out, unit);
  }
  return out;
}

std::vector<std::byte> ToUtf16(std::string_view text, std::endian order) {
  std::vector<std::byte> out;
  while (!text.empty()) {
    uint32_t point = TakeUtf8(text);
    if (point < 0x10000) {
      Append16(out, point, order);
      continue;
    }
    Append16(out, 0xd800 + ((point - 0x10000) >> 10), order);
    Append16(out, 0xdc00 + ((point - 0x10000) & 0x3ff), order);
  }
  return out;
}

std::optional<std::string> FromWindowsPath(std::string_view path) {
  if (path.empty() || HasDrive(path) || path.starts_with("\\\\")) return std::nullopt;
  std::string out(path);
  std::ranges::replace(out, '\\', '/');
  return out;
}

std::string ToWindowsPath(std::string_view path) {
  std::string out(path);
  std::ranges::replace(out, '/', '\\');
  return out.starts_with(".\\") || out.starts_with("..\\") ? out : ".\\" + out;
}

std::string_view ForeignFileName(std::string_view path) {
  size_t at = path.find_last_of("/\\");
  if (at != path.npos) return path.substr(at + 1);
  return HasDrive(path) ? path.substr(2) : path;
}

}  // namespace platter
