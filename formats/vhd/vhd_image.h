// What is in the file of a dynamic or differencing VHD: its headers, and a survey of its table.
// Shared by the layer and by check.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "formats/format.h"
#include "formats/vhd/vhd_parse.h"
#include "io/info.h"
#include "io/store.h"

namespace platter::vhd {

// A part of the file that holds something other than blocks.
struct Part {
  std::string_view what;
  Range range;
};

// What the headers of a dynamic or differencing disk say, and where.
struct Image {
  Footer footer;
  Header header;
  DiskHeader disk_header;         // as it is in the file
  uint64_t size = 0;              // bytes the guest sees
  std::vector<Part> parts;        // ascending
  std::vector<std::byte> batmap;  // its bits; empty where there is none
  Range batmap_header;            // empty where there is none
  bool batmap_good = false;       // its checksum is right
  std::optional<uint64_t> tail;   // where a valid footer ends the file
  bool copy_good = false;         // the copy at the start is the same
  uint64_t file_size = 0;         // bytes

  // Blocks end here: bytes in front of the footer at the end.
  uint64_t data_end() const { return tail.value_or(file_size); }
  bool differencing() const { return footer.type == DiskType::kDifferencing; }
  uint64_t blocks() const { return DivideUp(size, header.block_size); }
  // Bytes of the disk that block `index` holds. The table may have room for more blocks than the
  // disk has.
  uint64_t BlockBytes(uint64_t index) const {
    uint64_t start = index * header.block_size;
    return start < size ? std::min<uint64_t>(header.block_size, size - start) : header.block_size;
  }
};

// The footer that counts, of any kind of disk.
struct FooterAndSize {
  Footer footer;
  SizeChoice size;
  std::optional<uint64_t> tail;  // where a valid one ends the file
  bool copy_good = false;        // the one in the first sector is the same
  uint64_t file_size = 0;        // bytes
};
Result<FooterAndSize> ReadFooter(Store& store, const OpenOptions& options);

struct OpenedImage {
  Image image;
  SizeChoice size;
  std::optional<Reference> parent;
};
// Everything but the table, checked so far that the table is in the file and that nothing overlaps.
// Not for fixed disks.
Result<OpenedImage> ReadImage(Store& store, const OpenOptions& options);

// The used entries of a table.
struct Survey {
  struct Unit {
    uint32_t sector = 0;  // where it begins
    uint32_t block = 0;
  };
  std::vector<Unit> units;  // by sector
};
// Reads the whole table in pieces. kUnsupported where more blocks are in use than we keep in
// memory.
Result<Survey> ReadTable(Store& store, const Image& image);
// Bytes of the file that the unit of block `index` at `start` occupies for certain.
Range UnitRange(const Image& image, uint64_t start, uint64_t index);
// The part of the file, other than a block, that `range` overlaps, or null.
const Part* FindPart(const Image& image, Range range);

}  // namespace platter::vhd
