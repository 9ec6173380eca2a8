// Refcounts: who uses which host cluster, and the allocator that stands on it.
//
// On disk ("Host cluster management"): the refcount table, one run of clusters named by the header,
// holds offsets of refcount blocks, one cluster each; a block holds the counts of consecutive host
// clusters. A missing block means that all its clusters are free.
//
// Everything here happens under one mutex of its own (rank 3, below the layer's), so that readers
// of the mapping never wait for it; blocks are loaded under it. Counts are raised before anything
// refers to a cluster and lowered after nothing durable does: a crash leaks at worst.
//
// Growing the refcount table is the one change that is made durable at once: new blocks and table
// are written and synced, then the header names them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/sync.h"
#include "formats/qcow2/qcow2_parse.h"
#include "io/store.h"
#include "io/table_cache.h"

namespace platter::qcow2 {

class Refcounts {
 public:
  // `write_header` makes the header's refcount table fields durable on disk; called under mutex_.
  using WriteHeader = std::function<Result<>(uint64_t table_offset, uint32_t table_clusters)>;
  Refcounts(Store& store, const Header& header, std::vector<Range> fixed, WriteHeader write_header);

  // Reads the refcount table. Once, before anything else.
  Result<> Load();

  // A run of 1 to `most` free clusters, now counted once each.
  struct Run {
    Range host;            // bytes
    uint64_t virgin_from;  // from here on nobody has ever written: zeros, once the file reaches it
  };
  Result<Run> Allocate(uint64_t most);

  // Packs units of the given sizes one after the other where the last batch ended: host offset of
  // each. As many as fit in one go, at least one; each host cluster counts every unit that touches
  // it. Offsets stay below `limit`.
  Result<std::vector<uint64_t>> AllocatePacked(std::span<const uint32_t> sizes, uint64_t limit);

  // One reference less on every cluster that `host` touches; a count of zero makes it free. The
  // caller knows that nothing durable refers to it any more.
  Result<> Release(Range host);

  // Copies of what is dirty: blocks to be written first, then (after a sync) the table.
  struct Dirty {
    std::vector<TableCache::Piece> blocks;
    std::vector<TableCache::Piece> table;
    bool empty() const { return blocks.empty() && table.empty(); }
  };
  Dirty TakeDirty();
  void PutBack(const Dirty& dirty);
  void Written(const Dirty& dirty);
  size_t dirty_bytes() const { return blocks_.dirty_bytes(); }

  // The end of the last cluster that was allocated, or the end of the file if that is further.
  uint64_t allocated_end() const { return allocated_end_.load(); }

  // True if `host` touches the header or another structure whose place is fixed: nothing may be
  // allocated, and no data written, there, whatever the tables of a damaged image say.
  bool IsFixed(Range host) const;
  // A structure has moved. Exclusive: nobody else uses the layer.
  void MoveFixed(Range from, Range to);

 private:
  uint64_t clusters_per_block() const { return header_.refcounts_per_block(); }
  // The entry's part of the cached slice of its block; loads it. Null where there is no block.
  struct Entry {
    TableCache::Ref slice;
    uint64_t index = 0;
  };
  Result<Entry> Find(uint64_t cluster);
  Result<uint64_t> Get(uint64_t cluster);
  Result<> Set(uint64_t cluster, uint64_t count);
  Result<bool> IsFree(uint64_t cluster);
  // Makes sure that a block covers `cluster`; a new one takes free clusters itself.
  Result<> EnsureBlock(uint64_t cluster);
  Result<> GrowTable(uint64_t cluster);
  Result<Range> AllocateLocked(uint64_t first, uint64_t most);
  Result<> ReleaseLocked(uint64_t cluster);

  Store& store_;
  const Header header_;  // as opened; the refcount table's place is in table_offset_
  std::vector<Range> fixed_;
  const WriteHeader write_header_;

  mutable Mutex mutex_;  // rank 3; guards what follows
  uint64_t table_offset_ = 0;
  std::vector<uint64_t> table_;    // block offsets, as on disk
  std::vector<bool> table_dirty_;  // by 512-byte sector
  TableCache blocks_;
  uint64_t cursor_ = 0;      // clusters below are in use, as far as we know
  uint64_t packed_end_ = 0;  // host byte behind the last packed unit; 0: none
  std::atomic<uint64_t> allocated_end_{0};
};

}  // namespace platter::qcow2
