// New refcount structures for an image, at a place of their own: blocks one after the other, then
// the table. The header still leads to the old ones until whoever asked switches it.
#pragma once

#include <cstdint>
#include <functional>
#include <set>

#include "formats/qcow2/qcow2_check_image.h"

namespace platter::qcow2::check {

struct NewRefcounts {
  uint64_t start = 0;                        // clusters: of the first block
  uint64_t table = 0, table_clusters = 0;    // clusters
  std::set<uint64_t> indices;                // of the blocks, in the table
  uint64_t end() const { return table + table_clusters; }
  bool Holds(uint64_t cluster) const { return cluster >= start && cluster < end(); }
};

// Where they go: from cluster `start` on, behind which everything is free. `indices`: blocks that
// are needed for what is in use; those for the structures themselves are added. `order` is
// log2 of the bits of a refcount. kUnsupported where the table would be too large.
Result<NewRefcounts> PlanRefcounts(const Header& header, uint32_t order, uint64_t start,
                                   std::set<uint64_t> indices);

// Writes them, and Syncs. `count` says what each cluster's refcount shall be, the structures' own
// apart; it is asked for clusters in ascending order.
Result<> WriteNewRefcounts(Store& store, const Header& header, uint32_t order,
                           const NewRefcounts& place,
                           const std::function<Result<uint64_t>(uint64_t cluster)>& count);

}  // namespace platter::qcow2::check
