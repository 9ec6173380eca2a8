// From the bytes of a VDI header to checked values, and back. No I/O.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "formats/new_identity.h"
#include "formats/vdi/vdi_disk.h"

namespace platter::vdi {

struct Geometry {
  uint32_t cylinders = 0, heads = 0, sectors = 0, sector_size = 0;
};

// A header that makes sense: the sizes are consistent and what the header places does not overlap.
// Whether the file is long enough is for others to say.
struct Header {
  uint16_t major = 1, minor = 1;
  std::string creator, comment;  // raw bytes, without what follows a NUL
  ImageType type = ImageType::kDynamic;
  uint32_t flags = 0;
  uint32_t header_size = sizeof(DiskHeader1);  // version 1: bytes of its header
  uint64_t size = 0;                           // bytes: of the disk
  uint32_t block_size = 0;                     // bytes, whole sectors
  uint32_t block_extra = 0;                    // bytes in front of each block in the file
  uint32_t blocks = 0;                         // entries of the map
  uint32_t allocated = 0;  // host blocks; the next one to be allocated has this number
  uint64_t map_offset = 0, data_offset = 0;  // bytes in the file
  ImageId id{}, modification{}, parent_id{}, parent_modification{};
  Geometry geometry, logical_geometry;
  bool has_logical_geometry = false;
  uint32_t translation = 0;

  bool differencing() const { return type == ImageType::kUndo || type == ImageType::kDifferencing; }
  // From one host block to the next.
  uint64_t stride() const { return uint64_t{block_size} + block_extra; }
  uint64_t map_bytes() const { return uint64_t{blocks} * 4; }
  // Where header structures end.
  uint64_t end() const;
  // The bytes of a host block that guest data is in, without its extra data. Where that would be
  // past 2^64, the last bytes before it: no file reaches there.
  Range HostBlock(uint32_t index) const;
  // Whole host blocks in a file of `file_size` bytes.
  uint64_t BlocksInFile(uint64_t file_size) const {
    return file_size <= data_offset ? 0 : (file_size - data_offset) / stride();
  }
};

// `head`: the first bytes of the file, a sector or what there is. kCorrupt, kUnsupported.
Result<Header> ParseHeader(ConstBytes head);

// The header as bytes, header.end() of them.
std::vector<std::byte> BuildHeader(const Header& header);

// How many blocks a disk needs.
constexpr uint64_t BlocksFor(uint64_t size, uint32_t block_size) {
  return DivideUp(size, block_size);
}

std::string_view TypeName(ImageType type);  // "dynamic", "fixed", "undo", "differencing"

}  // namespace platter::vdi
