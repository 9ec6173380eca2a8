// Ids and times of new images, and how ids are written.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "formats/format.h"

namespace platter {

// 128 bits in the order in which an image stores them.
using ImageId = std::array<std::byte, 16>;

// A random UUID (version 4, RFC 9562 section 5.4). With options.reproducible it is made of what the
// options say and of `purpose`, which tells several ids of one image apart: the same arguments give
// the same id.
ImageId MakeImageId(const CreateOptions& options, std::string_view purpose);

// Now, or SOURCE_DATE_EPOCH with options.reproducible (0 where it is not set). Seconds since the
// Epoch.
int64_t CreationTime(const CreateOptions& options);

// "00112233-4455-6677-8899-aabbccddeeff", in the order of the bytes.
std::string IdText(const ImageId& id);
// The same where the first three groups are stored little endian, as Microsoft does.
std::string GuidText(const ImageId& id);
// The id that GuidText writes as `text`; nothing where that is none.
std::optional<ImageId> FromGuidText(std::string_view text);

constexpr bool IsNil(const ImageId& id) { return id == ImageId{}; }

}  // namespace platter
