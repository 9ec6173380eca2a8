// Discard: entries that name nothing any more. In steps of one L2 slice, or of a run of L1 entries
// that name no table; the engine comes back for the rest.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/qcow2/qcow2_bitmaps.h"
#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {

Result<Range> Qcow2Layer::Discard(Range want, Kind leave) {
  CHECK(leave != Kind::kData);
  TRY(Named(CheckWritable(want)));
  return Named(DiscardSome(want, leave));
}

// The whole units inside `want`; the disk's last one may be short.
Range Qcow2Layer::DiscardUnits(Range want) const {
  uint64_t unit = format_.subcluster_size(), first = RoundUp(want.offset, unit);
  uint64_t end = want.end() == info_.size ? want.end() : RoundDown(want.end(), unit);
  return Range::FromTo(first, std::max(first, end));
}

Result<Range> Qcow2Layer::DiscardSome(Range want, Kind leave) {
  const Range nothing{want.offset, 0};
  Range part = DiscardUnits(want);
  if (part.empty()) return nothing;
  if (format_.data_file_raw()) return DiscardInRaw(part, leave);
  // Version 2 has no zero clusters.
  if (format_.version < 3 && leave != Kind::kParent && !absent_is_zero()) return nothing;
  const bool may_be_absent = leave == Kind::kParent || absent_is_zero();
  if (may_be_absent) {
    Range empty = EmptyTables(part);
    if (!empty.empty()) return empty;
  }
  part = Range::FromTo(part.offset, std::min(part.end(), SliceEnd(part.offset)));
  sched::Yield("discard");
  return DiscardInSlice(part, leave);
}

// A raw data file has to read as the disk does: its bytes are zeroed, its clusters stay. (It has no
// parent, so all three ways to leave are zeros.)
Result<Range> Qcow2Layer::DiscardInRaw(Range part, Kind leave) {
  auto guard = ranges_.Lock(part.Outward(cluster_size()));
  TRY(bitmaps_->Mark(part));
  TRY_AS("data file", data_file_->Zero(part, /*may_unmap=*/leave != Kind::kZero));
  return part;
}

// The beginning of `part` that has no L2 tables. Waits for those who may be making one.
Range Qcow2Layer::EmptyTables(Range part) {
  auto count = [&](uint64_t end) {
    std::lock_guard lock(map_mutex_);
    uint64_t at = part.offset;
    while (at < end && l1_[Locate(at).l1_index] == 0) {
      at = std::min(end, RoundDown(at, format_.l2_span()) + format_.l2_span());
    }
    return Range::FromTo(part.offset, at);
  };
  Range empty = count(part.end());
  if (empty.empty()) return empty;
  auto guard = ranges_.Lock(empty.Outward(cluster_size()));
  return count(empty.end());
}

Result<Range> Qcow2Layer::DiscardInSlice(Range part, Kind leave) {
  auto guard = ranges_.Lock(part.Outward(cluster_size()));
  TableCache::Ref slice = TRY(OwnSlice(part.offset));
  std::vector<Cluster> clusters = TRY(ReadClusters(slice, part));
  part.length = std::min(part.end(), RoundDown(part.offset, cluster_size()) +
                                         clusters.size() * cluster_size()) -
                part.offset;
  TrimCompressed(part, clusters);
  if (part.empty()) return part;
  std::vector<Update> updates;
  std::vector<Range> gone;
  uint64_t start = RoundDown(part.offset, cluster_size());
  for (const Cluster& old : clusters) {
    Range here = Range{start, cluster_size()}.Intersect(part);
    uint64_t unit = format_.subcluster_size(), count = DivideUp(here.length, unit);
    // The end of the disk stands for the end of its cluster.
    if (here.end() == info_.size) count = (cluster_size() - (here.offset - start)) / unit;
    uint32_t bits = count >= 32 ? ~uint32_t{0} : (uint32_t{1} << count) - 1;
    if (!format_.extended_l2()) bits = ~uint32_t{0};
    L2Entry entry = DiscardedEntry(old, bits << (here.offset - start) / unit, leave);
    bool keeps =
        (entry.descriptor & kOffsetMask) != 0 || (placed() && (entry.descriptor & kCopied));
    if (Range host = HostOf(old); !keeps && !host.empty()) {
      TRY(CheckOld(old, false));
      gone.push_back(host);
    }
    if (!SaysAlready(old, entry)) updates.push_back({Locate(start).index, entry});
    start += cluster_size();
  }
  TRY(bitmaps_->Mark(part));
  if (placed() && leave != Kind::kParent && data_file_->caps().punch) {
    // Best effort: what is not named any more need not be kept.
    (void)data_file_->Zero(part, /*may_unmap=*/true);
  }
  uint64_t generation = WriteEntries(slice, updates);
  for (Range host : gone) allocator_->Retire(host, generation, /*punch=*/true);
  return part;
}

// A packed unit is dropped as a whole or not at all: `part` ends before one that it holds in part,
// or begins behind it.
void Qcow2Layer::TrimCompressed(Range& part, std::vector<Cluster>& clusters) const {
  auto packed_in_part = [&](const Cluster& cluster, uint64_t start) {
    Range whole = Range{start, cluster_size()}.Intersect({0, info_.size});
    return cluster.kind == ClusterKind::kCompressedUnit && part.Intersect(whole) != whole;
  };
  if (clusters.empty()) return;
  uint64_t last = RoundDown(part.end() - 1, cluster_size());
  if (packed_in_part(clusters.back(), last)) {
    clusters.pop_back();
    part = Range::FromTo(part.offset, std::max(part.offset, last));
  }
  uint64_t first = RoundDown(part.offset, cluster_size());
  if (!clusters.empty() && packed_in_part(clusters.front(), first)) {
    clusters.erase(clusters.begin());
    uint64_t begin = std::min(first + cluster_size(), part.end());
    part = Range::FromTo(begin, part.end());
  }
}

// For entries without a host cluster.
bool Qcow2Layer::SaysAlready(const Cluster& old, L2Entry entry) const {
  if (old.kind != ClusterKind::kUnallocated && old.kind != ClusterKind::kZeroPlain) return false;
  if (format_.extended_l2()) return entry.bitmap == uint64_t{old.zero} << 32;
  return entry.descriptor == (old.kind == ClusterKind::kZeroPlain ? kZeroFlag : 0);
}

// What a cluster's entry becomes when the subclusters of `mask` are dropped.
L2Entry Qcow2Layer::DiscardedEntry(const Cluster& old, uint32_t mask, Kind leave) const {
  const bool zero = leave != Kind::kParent && !absent_is_zero();
  if (!format_.extended_l2()) return {zero ? kZeroFlag : 0, 0};
  bool packed = old.kind == ClusterKind::kCompressedUnit;
  uint32_t allocated = packed ? 0 : old.allocated & ~mask;
  uint32_t zeros = packed ? 0 : old.zero & ~mask;
  if (zero) zeros |= mask;
  bool has_host = old.kind == ClusterKind::kNormal && allocated != 0;
  uint64_t descriptor = has_host ? old.host | (old.copied ? kCopied : 0) : 0;
  return {descriptor, uint64_t{zeros} << 32 | allocated};
}

}  // namespace platter::qcow2
