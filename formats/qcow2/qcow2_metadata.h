// MetadataMap: where the metadata of an image lies that is opened for writing, so that wrong
// refcounts or a hostile L2 entry do not make us write guest data over it.
//
// It knows the header, the tables that the header names, the L1 tables of snapshots, the active L2
// tables and the refcount blocks. What we allocate later is not entered: it has its refcount. What
// we free is removed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/range.h"
#include "base/result.h"
#include "base/sync.h"

namespace platter::qcow2 {

class MetadataMap {
 public:
  explicit MetadataMap(uint64_t cluster_size) : cluster_size_(cluster_size) {}

  // Before Seal, by one thread. Ranges are widened to whole clusters; empty ones are ignored.
  void AddTable(Range range, std::string what);
  // One cluster: an L2 table or a refcount block.
  void AddCluster(uint64_t offset) { clusters_.push_back(offset); }

  // kCorrupt if two of them overlap, or one lies past `end`, the end of the file in bytes.
  Result<> Seal(uint64_t end);

  // What lies in `range`, for a message ("the L1 table"); empty if nothing. Any thread.
  std::string Find(Range range) const;

  // The space was freed. Any thread.
  void Remove(Range range);

 private:
  struct Table {
    Range range;
    std::string what;
  };

  const uint64_t cluster_size_;
  mutable Mutex mutex_;  // guards everything below; a leaf
  std::vector<Table> tables_;
  std::vector<uint64_t> clusters_;  // ascending
};

}  // namespace platter::qcow2
