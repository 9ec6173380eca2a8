// Where the independent parts of a compressed file are, where it says so itself.
//
//   xz     the index at the end of each stream: blocks (what `xz -T` and pixz make several of)
//   zstd   frames with a content size, found by walking from block header to block header
//   gzip   BGZF members (as bgzip makes them): their length is in a field "BC" of the header
//
// Anything else, bzip2 included, can only be unpacked from the start. What an index claims is
// verified when the part is unpacked; an index that cannot be read is no index, and unpacking from
// the start then finds what is wrong and where.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/range.h"
#include "io/store.h"
#include "io/unpack/decoder.h"

namespace platter {

// What can be unpacked by itself: a block of xz, one or more members of zstd and gzip.
struct PackedBlock {
  Range host;             // in the packed file
  Range guest;            // in the content
  uint64_t unpadded = 0;  // xz: bytes of `host` without padding
  uint8_t check = 0;      // xz: kind of its checksum
};

struct UnpackIndex {
  uint64_t size = 0;    // bytes of content
  uint64_t memory = 0;  // bytes that unpacking one block takes
  // Ascending and contiguous. Empty where one would be longer than kMostBlock: then the size is
  // all there is to know.
  std::vector<PackedBlock> blocks;

  static constexpr uint64_t kMostBlock = 64 * kMiB;
};

// Costs a look at each block's header and takes up to 64 MiB of memory for a million blocks; a
// file of more has no index.
std::optional<UnpackIndex> ReadIndex(Store& packed, Packing packing);

// The decoder of one block.
Result<std::unique_ptr<Decoder>> MakeBlockDecoder(Packing packing, const PackedBlock& block,
                                                  uint64_t memory);

namespace internal {
std::optional<UnpackIndex> ReadXzIndex(Store& packed);
}  // namespace internal

}  // namespace platter
