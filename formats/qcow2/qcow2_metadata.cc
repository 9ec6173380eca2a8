#include "formats/qcow2/qcow2_metadata.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace platter::qcow2 {

void MetadataMap::AddTable(Range range, std::string what) {
  if (range.empty()) return;
  tables_.push_back({range.Outward(cluster_size_), std::move(what)});
}

Result<> MetadataMap::Seal(uint64_t end) {
  std::lock_guard lock(mutex_);
  std::ranges::sort(tables_, {}, [](const Table& table) { return table.range.offset; });
  std::ranges::sort(clusters_);
  auto twice = std::ranges::adjacent_find(clusters_);
  if (twice != clusters_.end()) {
    return Fail(Code::kCorrupt, "the cluster at {:#x} is used as two tables", *twice);
  }
  end = RoundUp(end, cluster_size_);
  if (!clusters_.empty() && clusters_.back() >= end) {
    return Fail(Code::kCorrupt, "a table at {:#x} lies past the end of the file ({:#x})",
                clusters_.back(), end);
  }
  for (size_t i = 0; i < tables_.size(); ++i) {
    Range range = tables_[i].range;
    if (range.end() > end) {
      return Fail(Code::kCorrupt, "{} at {:#x} lies past the end of the file ({:#x})",
                  tables_[i].what, range.offset, end);
    }
    auto inside = std::ranges::lower_bound(clusters_, range.offset);
    if (inside != clusters_.end() && *inside < range.end()) {
      return Fail(Code::kCorrupt, "the table at {:#x} overlaps {}", *inside, tables_[i].what);
    }
    if (i > 0 && tables_[i - 1].range.Overlaps(range)) {
      return Fail(Code::kCorrupt, "{} overlaps {} at {:#x}", tables_[i - 1].what, tables_[i].what,
                  range.offset);
    }
  }
  return {};
}

std::string MetadataMap::Find(Range range) const {
  std::lock_guard lock(mutex_);
  // The first that ends past our beginning; they are disjoint, so the ends ascend as well.
  auto table = std::ranges::upper_bound(tables_, range.offset, {},
                                        [](const Table& each) { return each.range.end(); });
  if (table != tables_.end() && table->range.Overlaps(range)) return table->what;
  uint64_t first = RoundDown(range.offset, cluster_size_);
  auto cluster = std::ranges::lower_bound(clusters_, first);
  if (cluster != clusters_.end() && *cluster < range.end()) return "a table of clusters";
  return {};
}

void MetadataMap::Remove(Range range) {
  std::lock_guard lock(mutex_);
  std::erase_if(tables_, [&](const Table& table) { return table.range.Overlaps(range); });
  auto first = std::ranges::lower_bound(clusters_, range.offset);
  clusters_.erase(first, std::lower_bound(first, clusters_.end(), range.end()));
}

}  // namespace platter::qcow2
