#include "base/bytes.h"

#include <fmt/core.h>

#include <algorithm>

namespace platter {

bool IsZero(ConstBytes bytes) {
  // A page that holds data nearly always shows it in its first bytes; memcmp with itself one byte
  // on then covers the rest at the speed of the C library.
  size_t head = std::min<size_t>(bytes.size(), 16);
  for (size_t i = 0; i < head; ++i) {
    if (bytes[i] != std::byte{0}) return false;
  }
  if (bytes.size() <= 16) return true;
  return std::memcmp(bytes.data(), bytes.data() + 16, bytes.size() - 16) == 0;
}

namespace {

// Length of the well-formed UTF-8 sequence at the start of `text`, 0 if there is none.
size_t Utf8Length(std::string_view text) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  unsigned char lead = byte(0);
  size_t length = lead < 0x80                   ? 1
                  : lead >= 0xc2 && lead < 0xe0 ? 2
                  : (lead & 0xf0) == 0xe0       ? 3
                  : lead >= 0xf0 && lead < 0xf5 ? 4
                                                : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  if (length == 2 && lead == 0xc2 && byte(1) < 0xa0) return 0;  // C1 control characters
  if (length == 3 && ((lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xed && byte(1) > 0x9f)))
    return 0;
  if (length == 4 && ((lead == 0xf0 && byte(1) < 0x90) || (lead == 0xf4 && byte(1) > 0x8f)))
    return 0;
  return length;
}

}  // namespace

std::string Printable(std::string_view text, size_t limit) {
  bool cut = text.size() > limit;
  text = text.substr(0, limit);
  std::string out;
  while (!text.empty()) {
    size_t length = Utf8Length(text);
    unsigned char lead = static_cast<unsigned char>(text[0]);
    if (length == 0 || lead < 0x20 || lead == 0x7f) {
      out += fmt::format("\\x{:02x}", lead);
      length = 1;
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length);
  }
  if (cut) out += "...";
  return out;
}

}  // namespace platter
