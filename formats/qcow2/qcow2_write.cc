// Reserve and Publish. What becomes of each cluster that a request touches:
//
//   plain, ours alone                in place
//   a zero cluster with space, ours  that space, filled to its borders
//   anything else                    a new cluster, filled to its borders
//
// With subclusters the borders are those of the subclusters touched. In a cluster that is ours
// alone only subclusters that hold nothing yet are filled; a new cluster that replaces one shared
// with a snapshot also gets copies of all subclusters that the old one held. With a cipher, bytes
// in place are filled to its sectors.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/qcow2/qcow2_bitmaps.h"
#include "formats/qcow2/qcow2_reservation.h"

namespace platter::qcow2 {

namespace {
// One reservation covers at most this, and at least a cluster.
constexpr uint64_t kMostReserved = 8 * kMiB;
}  // namespace

Result<std::unique_ptr<Reservation>> Qcow2Layer::Reserve(Range want) {
  TRY(Named(CheckWritable(want)));
  uint64_t end =
      std::min({want.end(), SliceEnd(want.offset),
                RoundDown(want.offset, cluster_size()) + std::max(cluster_size(), kMostReserved)});
  want = Range::FromTo(want.offset, end);
  sched::Yield("reserve");
  auto reservation =
      std::make_unique<Qcow2Reservation>(*this, ranges_.Lock(want.Outward(cluster_size())));
  Result<> planned = Plan(*reservation, want);
  if (!planned.has_value() && planned.error().code() == Code::kNoSpace &&
      allocator_->HasRetired()) {
    // Something may come free.
    reservation->Reset();
    TRY(Flush());
    planned = Plan(*reservation, want);
  }
  TRY(Named(std::move(planned)));
  TRY(Named(bitmaps_->Mark(reservation->range_)));
  return std::unique_ptr<Reservation>(std::move(reservation));
}

Result<> Qcow2Layer::Plan(Qcow2Reservation& reservation, Range want) {
  reservation.slice_ = TRY(OwnSlice(want.offset));
  std::vector<Cluster> clusters = TRY(ReadClusters(reservation.slice_, want));
  uint64_t needed = 0;
  for (size_t i = 0; i < clusters.size(); ++i) {
    Result<> good = CheckOld(clusters[i], KeepsHost(clusters[i]));
    if (!good.has_value()) {
      if (i == 0) return good;
      clusters.resize(i);
      break;
    }
    if (!KeepsHost(clusters[i]) && !placed()) ++needed;
  }
  if (needed > 0) reservation.fresh_ = TRY(allocator_->Allocate(needed));
  uint64_t next = reservation.fresh_.first;
  for (uint64_t guest = RoundDown(want.offset, cluster_size()); const Cluster& old : clusters) {
    std::optional<uint64_t> fresh;
    if (placed()) {
      if (!KeepsHost(old)) fresh = guest;
    } else if (!KeepsHost(old)) {
      if (next == reservation.fresh_.end()) break;
      fresh = next++ << format_.cluster_bits;
    }
    Range part = Range{guest, cluster_size()}.Intersect(want);
    PlanCluster(reservation, guest, part, old, fresh, reservation.fresh_.zeroed);
    guest += cluster_size();
    reservation.range_ = Range::FromTo(want.offset, part.end());
  }
  return {};
}

// True if new bytes go where the cluster is.
bool Qcow2Layer::KeepsHost(const Cluster& cluster) const {
  bool has_host =
      cluster.kind == ClusterKind::kNormal || cluster.kind == ClusterKind::kZeroAllocated;
  return has_host && (cluster.copied || placed());
}

// Refuses what would damage an image whose tables contradict one another: to overwrite metadata, or
// to drop a reference that is not counted.
Result<> Qcow2Layer::CheckOld(const Cluster& cluster, bool stays) {
  Range host = HostOf(cluster);
  if (host.empty()) return {};
  if (stays) {
    std::string what = metadata_.Find(host);
    if (what.empty() && host.end() <= DataEnd()) return {};
    if (what.empty() && cluster.allocated == 0 && TRY(allocator_->Refcount(host.offset)) > 0) {
      return allocator_->Cover(host);
    }
    if (what.empty()) what = "nothing: it lies past the end of the file";
    return Fail(Code::kCorrupt, "an L2 entry names the cluster at {:#x}, which holds {}",
                host.offset, what);
  }
  for (uint64_t at = RoundDown(host.offset, cluster_size()); at < host.end();
       at += cluster_size()) {
    if (TRY(allocator_->Refcount(at)) > 0) continue;
    return Fail(Code::kCorrupt, "an L2 entry names the cluster at {:#x}, whose refcount is 0", at);
  }
  return {};
}

// Targets, fills and the new entry for `part` of the cluster at `guest`. `fresh`: its new place;
// `zeroed`: which reads as zeros, so that zeros need not be copied up.
void Qcow2Layer::PlanCluster(Qcow2Reservation& reservation, uint64_t guest, Range part,
                             const Cluster& old, std::optional<uint64_t> fresh, bool zeroed) {
  const uint64_t size = format_.subcluster_size(), host = fresh.value_or(old.host);
  const uint32_t count = format_.subclusters();
  const bool packed = old.kind == ClusterKind::kCompressedUnit;
  uint32_t allocated = fresh ? 0 : old.allocated;
  for (uint32_t i = 0; i < count; ++i) {
    Range sub = Range{guest + i * size, size}.Intersect({0, info_.size});
    const bool holds = packed || (old.allocated >> i & 1) != 0;
    if (sub.empty() || (!sub.Overlaps(part) && !(fresh && holds))) continue;
    const bool zero = !holds && ((old.zero >> i & 1) != 0 || absent_is_zero());
    Range here = sub;
    if (!fresh && holds) {
      here = sub.Intersect(cipher_ ? part.Outward(Cipher::kSector) : part);
    } else if (zero && fresh && zeroed && !cipher_) {
      here = sub.Intersect(part);
    }
    allocated |= 1u << i;
    Extent target = PlainExtent(here, host + (here.offset - guest));
    if (fresh && zeroed && !cipher_) target.kind = Kind::kZero;
    reservation.AddTarget(target);
    Range inner = here.Intersect(part);
    if (inner.empty()) inner = {here.end(), 0};
    reservation.AddFill(Range::FromTo(here.offset, inner.offset));
    reservation.AddFill(Range::FromTo(inner.end(), here.end()));
  }
  L2Entry entry{host | kCopied, 0};
  if (format_.extended_l2()) {
    uint32_t zero = packed ? 0 : old.zero & ~allocated;
    entry.bitmap = uint64_t{zero} << 32 | allocated;
  }
  const bool same = !fresh && old.kind == ClusterKind::kNormal && old.allocated == allocated;
  if (!same) reservation.updates_.push_back({Locate(guest).index, entry});
  if (Range gone = HostOf(old); fresh && !gone.empty()) reservation.old_.push_back(gone);
}

Extent Qcow2Layer::PlainExtent(Range guest, uint64_t host) const {
  Extent extent;
  extent.guest = guest;
  extent.kind = Kind::kData;
  extent.store = &data();
  extent.host = {host, guest.length};
  extent.codec.cipher = cipher_.get();
  return extent;
}

void Qcow2Reservation::AddTarget(const Extent& extent) {
  if (!target_.empty()) {
    Extent& last = target_.back();
    if (last.kind == extent.kind && last.guest.end() == extent.guest.offset &&
        last.host.end() == extent.host.offset) {
      last.guest.length += extent.guest.length;
      last.host.length += extent.host.length;
      return;
    }
  }
  target_.push_back(extent);
}

void Qcow2Reservation::AddFill(Range range) {
  if (range.empty()) return;
  if (!fill_.empty() && fill_.back().end() == range.offset) {
    fill_.back().length += range.length;
  } else {
    fill_.push_back(range);
  }
}

Result<> Qcow2Reservation::Publish() {
  sched::Yield("publish");
  uint64_t generation = layer_.WriteEntries(slice_, updates_);
  fresh_ = {};
  packed_.clear();
  for (Range host : old_) layer_.allocator_->Retire(host, generation, /*punch=*/false);
  return {};
}

void Qcow2Reservation::Reset() {
  GiveBack();
  slice_ = {};
  range_ = {};
  target_.clear();
  fill_.clear();
  updates_.clear();
  old_.clear();
}

void Qcow2Reservation::GiveBack() {
  if (fresh_.count > 0) layer_.allocator_->GiveBack(std::exchange(fresh_, {}));
  for (Range host : std::exchange(packed_, {})) {
    layer_.allocator_->GiveBackPacked(host.offset, host.length);
  }
}

}  // namespace platter::qcow2
