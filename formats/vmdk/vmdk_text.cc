#include "formats/vmdk/vmdk_text.h"

#include <iconv.h>

#include <algorithm>
#include <cctype>

namespace platter::vmdk {

namespace {

// iconv's name of an encoding. A name from an image goes no further than letters that encodings
// have: iconv looks for its tables in files, and options follow a slash.
std::optional<std::string> IconvName(const std::string& encoding) {
  auto plain = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; };
  if (encoding.empty() || encoding.size() > 32 || !std::ranges::all_of(encoding, plain)) {
    return std::nullopt;
  }
  return encoding;
}

}  // namespace

std::optional<std::string> ToUtf8(std::string_view name, const std::string& encoding) {
  auto from = IconvName(encoding);
  if (!from || std::ranges::all_of(name, [](unsigned char c) { return c < 0x80; })) {
    return std::nullopt;
  }
  iconv_t converter = iconv_open("UTF-8", from->c_str());
  // NOLINTNEXTLINE: that is how iconv_open says that it failed
  if (converter == reinterpret_cast<iconv_t>(-1)) return std::nullopt;
  std::string out(name.size() * 4, '\0');
  char* in_at = const_cast<char*>(name.data());
  char* out_at = out.data();
  size_t in_left = name.size(), out_left = out.size();
  size_t done = iconv(converter, &in_at, &in_left, &out_at, &out_left);
  iconv_close(converter);
  if (done == static_cast<size_t>(-1) || in_left > 0) return std::nullopt;
  out.resize(out.size() - out_left);
  if (out == name) return std::nullopt;
  return out;
}

}  // namespace platter::vmdk
