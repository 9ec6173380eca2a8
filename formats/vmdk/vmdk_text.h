// Names in the encodings that descriptors are written in.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace platter::vmdk {

// `name`, written in `encoding` ("windows-1252", "Shift_JIS", "GBK" ...), in UTF-8. Nothing where
// the encoding is not known or the bytes are not of it; also where nothing would change.
std::optional<std::string> ToUtf8(std::string_view name, const std::string& encoding);

}  // namespace platter::vmdk
