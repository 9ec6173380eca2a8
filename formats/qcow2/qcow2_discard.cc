// Discard: clusters (and subclusters) that are dropped, or made zero by a flag.
#include <algorithm>

#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {

Result<Range> Qcow2Layer::Discard(Range want, Kind leave) {
  TRY(CheckRange(want));
  TRY(StartWriting());
  sched::Yield("discard");
  // Without a flag for zeros a cluster reads as zeros only if nothing shows through from below.
  if (leave != Kind::kParent && header_.has_backing && header_.version < 3)
    return Range{want.offset, 0};
  if (leave != Kind::kParent) leave = header_.has_backing ? Kind::kZero : leave;
  if (header_.version < 3) leave = Kind::kParent;

  uint64_t unit = header_.subcluster_size();
  Range aligned = want.Inward(unit);
  if (want.end() == info_.size && RoundUp(want.offset, unit) <= want.end()) {
    aligned = Range::FromTo(RoundUp(want.offset, unit), want.end());
  }
  if (aligned.empty()) return Range{want.offset, 0};
  for (uint64_t at = aligned.offset; at < aligned.end();) {
    uint64_t end = std::min(aligned.end(), RoundDown(at, slice_span()) + slice_span());
    TRY(DiscardSlice(Range::FromTo(at, end), leave));
    at = end;
  }
  TRY(FlushIfLarge());
  return aligned;
}

Result<> Qcow2Layer::DiscardSlice(Range part, Kind leave) {
  RangeLock::Guard guard = reservations_.Lock(part.Outward(header_.cluster_size()));
  bool nothing_below = !header_.has_backing;
  if (leave == Kind::kParent || leave == Kind::kHole || nothing_below) {
    Lock lock(mutex_);
    if (TRY(SliceOffset(part.offset)) == 0) return {};  // nothing is mapped here at all
  }
  TableCache::Ref slice = TRY(WritableSlice(part.offset));
  Lock lock(mutex_);
  for (uint64_t guest = RoundDown(part.offset, header_.cluster_size()); guest < part.end();
       guest += header_.cluster_size()) {
    Cluster old = TRY(DecodeL2(header_, LoadEntry(slice, guest), guest));
    Range inside = part.Intersect({guest, header_.cluster_size()});
    // A part of a compressed cluster cannot be dropped alone.
    bool whole = inside.length == header_.cluster_size() ||
                 (inside.offset == guest && inside.end() == info_.size);
    if (!whole && old.kind == ClusterKind::kCompressedUnit)
      return Fail(Code::kUnsupported, "a part of a compressed cluster cannot be discarded");
    DiscardCluster(slice, old, inside, guest, leave);
  }
  wrote_ = true;
  lock.unlock();
  // A raw data file is an image of its own: it must read as zeros as well.
  if (header_.data_file_raw()) TRY(data_store_->Zero(part, /*may_unmap=*/true));
  return {};
}

void Qcow2Layer::DiscardCluster(TableCache::Ref& slice, const Cluster& old, Range part,
                                uint64_t guest, Kind leave) {
  bool zero = leave == Kind::kZero;
  bool whole =
      part.length == header_.cluster_size() || (part.offset == guest && part.end() == info_.size);
  L2Entry entry;
  if (!whole) {
    uint64_t step = header_.subcluster_size();
    uint64_t first = (part.offset - guest) / step, last = DivideUp(part.end() - guest, step);
    auto mask = static_cast<uint32_t>(((uint64_t{1} << (last - first)) - 1) << first);
    uint32_t allocated = old.allocated & ~mask, zeros = zero ? old.zero | mask : old.zero & ~mask;
    entry.descriptor = old.host | (old.copied ? kCopied : 0);
    entry.bitmap = uint64_t{zeros} << 32 | allocated;
  } else if (data_store_ && old.host == guest && old.kind != ClusterKind::kUnallocated) {
    // Guest data has its one place in the data file; only the flag changes.
    if (!zero) leave = Kind::kZero, zero = !header_.has_backing || zero;
    entry.descriptor = zero ? (header_.extended_l2() ? 0 : kZeroFlag) : 0;
    entry.bitmap = zero && header_.extended_l2() ? ~uint64_t{0} << 32 : 0;
  } else {
    entry.descriptor = zero && !header_.extended_l2() ? kZeroFlag : 0;
    entry.bitmap = zero && header_.extended_l2() ? ~uint64_t{0} << 32 : 0;
  }
  StoreEntry(slice, guest, entry);
  if (whole && old.kind == ClusterKind::kCompressedUnit) DropLocked({old.host, old.length}, false);
  if (whole && (old.kind == ClusterKind::kNormal || old.kind == ClusterKind::kZeroAllocated)) {
    DropLocked({old.host, header_.cluster_size()}, old.copied);
  }
}

}  // namespace platter::qcow2
