// File names as other systems record them in images: UTF-16 text and Windows paths.
#pragma once

#include <bit>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace platter {

// UTF-16 as UTF-8, up to a NUL. Half of a pair of surrogates becomes U+FFFD; an odd last byte is
// left out.
std::string FromUtf16(ConstBytes text, std::endian order);
// UTF-8 as UTF-16, without a NUL. Bytes that are not UTF-8 become U+FFFD.
std::vector<std::byte> ToUtf16(std::string_view text, std::endian order);

// A Windows path as a path of this system: backslashes become slashes. Nothing where it cannot be
// one: with a drive letter, a device ("\\?\"), or a server's name ("\\server\share").
std::optional<std::string> FromWindowsPath(std::string_view path);
// The reverse, for relative paths: ".\a\b.vhd".
std::string ToWindowsPath(std::string_view path);

// What follows the last slash or backslash, or drive letter.
std::string_view ForeignFileName(std::string_view path);

}  // namespace platter
