// What a differencing VHD says of its parent: id, time and name in the header, and locators, the
// paths by which different systems find it.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "formats/format.h"
#include "formats/vhd/vhd_parse.h"
#include "io/store.h"

namespace platter::vhd {

struct ParentRecord {
  struct Path {
    std::string_view code;
    std::vector<std::byte> data;
  };
  ImageId id{};
  uint32_t modified = 0;        // seconds since kEpoch
  std::vector<std::byte> name;  // UTF-16, big endian
  std::vector<Path> paths;

  // Of all paths in the file, in whole sectors.
  uint64_t bytes() const;
  // Writes the paths to `store` from `at` on and enters everything in `header`, which is not
  // sealed.
  Result<> Write(Store& store, uint64_t at, DiskHeader& header) const;
};

// kRefused where nobody looked at the parent, kUnsupported where a VHD cannot name it.
Result<ParentRecord> RecordOf(const std::optional<ParentFile>& parent);

}  // namespace platter::vhd
