// Refcounts: the two-level table that says how often each host cluster is used ("Host cluster
// management"). Blocks are cached in slices, so that a block of 2 MiB is not read for one number.
//
// Not thread-safe: the Allocator's lock guards it, and stays held while a slice is read. That stops
// other allocations, never a lookup of guest data.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "formats/qcow2/qcow2_entries.h"
#include "formats/qcow2/qcow2_parse.h"
#include "io/table_cache.h"

namespace platter::qcow2 {

// Host clusters by number (offset / cluster size).
struct Clusters {
  uint64_t first = 0, count = 0;
  bool zeroed = false;  // when allocated: known to read as zeros
  uint64_t end() const { return first + count; }
};

class Refcounts {
 public:
  Refcounts(Store& file, const Header& header);

  // Reads the refcount table.
  Result<> Load();

  uint64_t max() const { return max_; }
  const EntryTable& table() const { return table_; }
  // Clusters that the table's entries can speak of, with blocks or without.
  uint64_t limit() const { return table_.size() * per_block_; }
  uint64_t per_block() const { return per_block_; }
  // Clusters that one read of a refcount brings into memory.
  uint64_t per_slice() const { return per_slice_; }
  // The refcount block of a cluster: its offset, 0 if there is none. kCorrupt for a wrong entry.
  Result<uint64_t> Block(uint64_t cluster) const;

  // 0 where there is no block.
  Result<uint64_t> Get(uint64_t cluster);
  // Sets a run whose blocks exist. On error the first part may be set.
  Result<> Fill(Clusters run, uint64_t value);
  // The first free run in [from, to), and no further than the end of from's slice: `next` gets
  // where to go on. A cluster without a block is passed over. count is 0 if there is none.
  Result<Clusters> FindFree(uint64_t from, uint64_t to, uint64_t& next);

  // A new block of zeros for `cluster` at cluster `at`; the entry is in the table.
  void AddBlock(uint64_t cluster, uint64_t at);
  // The table moves and grows.
  void MoveTable(Clusters place);

  // What a Flush writes; see TableCache for the rules. `moved`: the table has a new place, which
  // the header must name once it is written.
  struct Batch {
    std::vector<TableCache::Piece> blocks;
    std::vector<EntryTable::Piece> table;
    bool moved = false;
    uint64_t table_offset = 0;
    uint32_t table_clusters = 0;
  };
  Batch Take();
  void PutBack(const Batch& batch);
  void Written(const Batch& batch);
  bool dirty() const { return table_.dirty() || moved_ || blocks_.dirty_bytes() > 0; }
  size_t dirty_bytes() const { return blocks_.dirty_bytes(); }

 private:
  // A cluster's place: slice of a block, and number inside.
  struct Place {
    uint64_t slice;  // offset in the file
    uint64_t index;
    uint64_t left;  // clusters from this one to the end of the slice
  };
  Place Locate(uint64_t block, uint64_t cluster) const;

  Store& file_;
  const Header header_;
  const uint64_t per_block_, max_;
  const uint32_t slice_bytes_;
  const uint64_t per_slice_;
  EntryTable table_;
  bool moved_ = false;
  TableCache blocks_;
};

}  // namespace platter::qcow2
