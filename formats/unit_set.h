// UnitSet: which units of a disk hold something: one bit for each, in blocks that cost nothing
// where none or all of their units do.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/range.h"

namespace platter {

// Numbers of units, not bytes. One thread at a time.
class UnitSet {
 public:
  void Add(Range units);
  uint64_t count() const { return count_; }
  bool Has(uint64_t unit) const;
  // The first run of units of the set at or after `from`; empty if there is none. A long run may
  // come in parts.
  Range Next(uint64_t from) const;

 private:
  static constexpr uint64_t kBlock = 65536;  // units: 8 KiB of bits
  struct Block {
    uint64_t count = 0;
    std::vector<uint64_t> bits;  // empty where all are in the set
  };
  uint64_t AddToBlock(Block& block, uint64_t first, uint64_t end);

  std::map<uint64_t, Block> blocks_;  // by first unit / kBlock
  uint64_t count_ = 0;
};

}  // namespace platter
