// Which host blocks the block map uses.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "formats/vdi/vdi_parse.h"
#include "io/store.h"

namespace platter::vdi {

// Host blocks in a row.
struct Run {
  uint32_t first = 0, count = 0;
  bool zeroed = false;  // reads as zeros: nobody has ever written there
  uint32_t end() const { return first + count; }
};

// Whether an entry names a host block.
constexpr bool IsHostBlock(uint32_t entry) { return entry < kDiscarded; }

// Reads the map piece by piece, whatever its size: `look(first block, entries)`. kCorrupt if it
// reaches past the end of the file.
Result<> ReadMap(Store& file, const Header& header,
                 const std::function<Result<>(uint32_t, std::span<const le32>)>& look);

// One bit for each of the first `blocks` host blocks.
class BlockSet {
 public:
  // Memory: an eighth of a byte for each block.
  explicit BlockSet(uint64_t blocks) : size_(blocks), words_(DivideUp(blocks, 64)) {}

  uint64_t size() const { return size_; }
  bool Has(uint64_t block) const { return (words_[block / 64] >> block % 64 & 1) != 0; }
  // False if it was there already.
  bool Insert(uint64_t block) {
    uint64_t bit = uint64_t{1} << block % 64;
    bool fresh = (words_[block / 64] & bit) == 0;
    words_[block / 64] |= bit;
    return fresh;
  }
  // Calls `run(first, count)` for each run of blocks below `end` that are not in the set; stops
  // when it returns false.
  void EachGap(uint64_t end, const std::function<bool(uint32_t, uint32_t)>& run) const;

 private:
  uint64_t size_;
  std::vector<uint64_t> words_;
};

// Moves the host blocks with the highest numbers into `holes` (ascending, used by nothing) until
// those below `used` hold everything: data, Sync, entries, Sync. Whoever calls has everything
// written back and nobody else uses the image; blocks from `used` on are then free. Each moment
// leaves a sound image, maybe with copies that nothing names.
Result<> MoveIntoHoles(Store& file, const Header& header, std::span<const Run> holes,
                       uint32_t used);

// Writes one entry of the map.
Result<> WriteEntry(Store& file, const Header& header, uint32_t block, uint32_t entry);

// Copies host block `from`, with its extra data, to `to`.
Result<> CopyBlock(Store& file, const Header& header, uint32_t from, uint32_t to);

}  // namespace platter::vdi
