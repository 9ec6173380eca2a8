// Reserve and Publish: space for new bytes, and the moment they become the disk's.
//
// A Reservation covers at most one L2 slice and kMostReserved bytes. For each cluster it either
// writes in place (allocated, ours alone), reuses the host cluster of a preallocated zero cluster,
// or takes a new one; with extended L2 only the subclusters that are touched become allocated. What
// the unit is coarser than the request is `fill`, which the engine copies up from the old view.
// Fill is left out where the old view is zeros and the host space is new at the end of the file.
#include <algorithm>

#include "formats/qcow2/qcow2_layer.h"
#include "io/codec/cipher.h"

namespace platter::qcow2 {
namespace {

constexpr uint64_t kMostReserved = 8 * kMiB;
constexpr size_t kMostDirtyBytes = 16 * kMiB;

uint32_t SubclusterMask(uint64_t first, uint64_t last) {  // [first, last)
  return static_cast<uint32_t>(((uint64_t{1} << (last - first)) - 1) << first);
}

}  // namespace

class Qcow2Reservation final : public Reservation {
 public:
  Qcow2Reservation(Qcow2Layer& layer, RangeLock::Guard guard, TableCache::Ref slice)
      : layer_(layer), guard_(std::move(guard)), slice_(std::move(slice)) {}
  ~Qcow2Reservation() override {
    if (published_) return;
    // Nothing durable names this space and nobody else has seen it.
    for (Range host : taken_) (void)layer_.refcounts_->Release(host).has_value();
  }
  Range range() const override { return range_; }
  std::span<const Extent> target() const override { return target_; }
  std::span<const Range> fill() const override { return fill_; }

  Result<> Publish() override {
    sched::Yield("publish");
    published_ = true;
    {
      Qcow2Layer::Lock lock(layer_.mutex_);
      for (const Edit& edit : edits_) {
        layer_.StoreEntry(slice_, edit.guest, edit.entry);
        if (!edit.dropped.empty()) layer_.DropLocked(edit.dropped, false);
      }
    }
    layer_.wrote_ = true;
    slice_ = {};
    guard_.Release();
    return layer_.FlushIfLarge();
  }

 private:
  friend class Qcow2Layer;
  struct Edit {
    uint64_t guest;
    L2Entry entry;
    Range dropped;  // host bytes that the old entry named
  };

  // New bytes of guest range `part` go to `host`; what of it lies outside range_ is fill.
  void AddTarget(Range part, uint64_t host) {
    Extent extent{.guest = part,
                  .kind = Kind::kData,
                  .store = &layer_.data(),
                  .host = {host, part.length},
                  .codec = {.cipher = layer_.cipher_.get()}};
    if (!target_.empty() && target_.back().guest.end() == part.offset &&
        target_.back().host.end() == host) {
      target_.back().guest.length += part.length;
      target_.back().host.length += part.length;
    } else {
      target_.push_back(extent);
    }
    AddFill(Range::FromTo(part.offset, std::clamp(range_.offset, part.offset, part.end())));
    AddFill(Range::FromTo(std::clamp(range_.end(), part.offset, part.end()), part.end()));
  }
  void AddFill(Range part) {
    if (part.empty()) return;
    if (!fill_.empty() && fill_.back().end() == part.offset) {
      fill_.back().length += part.length;
    } else {
      fill_.push_back(part);
    }
  }

  Qcow2Layer& layer_;
  RangeLock::Guard guard_;
  TableCache::Ref slice_;
  Range range_;
  std::vector<Extent> target_;
  std::vector<Range> fill_, taken_;
  std::vector<Edit> edits_;
  bool published_ = false;
};

Result<> Qcow2Layer::CheckWritable() const {
  if (!writable_) return Fail(Code::kReadOnly, "{} is open for reading only", store_->name());
  return {};
}

// What a program that does not keep bitmaps and unknown features has to do before its first change:
// clear the autoclear bits it does not know, and mark enabled bitmaps as in use, which says that
// they are not to be trusted. Disabled ones stay true.
Result<> Qcow2Layer::StartWriting() {
  TRY(CheckWritable());
  if (started_) return {};
  std::lock_guard lock(header_mutex_);
  if (started_) return {};
  uint64_t at = header_.bitmaps ? header_.bitmaps->directory_offset : 0;
  for (const Bitmap& bitmap : bitmaps_) {
    if ((bitmap.flags & kBitmapAuto) && !(bitmap.flags & kBitmapInUse)) {
      be32 flags = bitmap.flags | kBitmapInUse;
      TRY_AS("bitmap directory",
             store_->Write(at + offsetof(DiskBitmapEntry, flags), AsBytes(flags)));
      wrote_ = true;
    }
    at += RoundUp(sizeof(DiskBitmapEntry) + bitmap.extra.size() + bitmap.info.name.size(), 8);
  }
  if (header_.autoclear & ~kKnownAutoclear) {
    Header header = header_;
    header.autoclear &= kKnownAutoclear;
    TRY(WriteHeader(header));
    header_.autoclear = header.autoclear;
  }
  if (wrote_) TRY(store_->Sync());
  started_ = true;
  return {};
}

Result<> Qcow2Layer::EnsureFileCovers(uint64_t end) {
  if (end <= file_size_) return {};
  std::lock_guard lock(size_mutex_);
  uint64_t size = TRY(store_->Size());
  if (size < end && !store_->caps().block_device) {
    TRY(store_->Resize(end));
    size = end;
  }
  if (!data_store_) file_size_ = std::max(file_size_.load(), size);
  return {};
}

void Qcow2Layer::DropLocked(Range host, bool give_back) {
  if (data_store_) return;  // guest data is not counted there, and keeps its place
  quarantine_.push_back({host, give_back, pins_.Now(), generation_});
}

Result<> Qcow2Layer::MakeTable(uint64_t guest) {
  uint64_t l1_index = guest / header_.l2_span();
  uint64_t old = 0;
  {
    Lock lock(mutex_);
    if (l1_[l1_index] & kCopied) {
      TRY(DecodeL1(header_, l1_[l1_index], l1_index));
      return {};
    }
    old = TRY(DecodeL1(header_, l1_[l1_index], l1_index));
  }
  Range host = TRY_AS("new L2 table", refcounts_->Allocate(1)).host;
  uint64_t step = slice_bytes();
  for (uint64_t at = 0; at < header_.cluster_size(); at += step) {
    TableCache::Ref source;
    if (old != 0) {
      Result<TableCache::Ref> got = l2_.Get(old + at);
      if (!got) {
        (void)refcounts_->Release(host).has_value();
        return std::unexpected(std::move(got.error()));
      }
      source = std::move(*got);
    }
    TableCache::Ref fresh = l2_.Fresh(host.offset + at);
    Lock lock(mutex_);
    Bytes into = fresh.Edit({0, step});
    if (old != 0) std::copy(source.bytes().begin(), source.bytes().end(), into.begin());
  }
  Lock lock(mutex_);
  l1_[l1_index] = host.offset | kCopied;
  l1_dirty_[l1_index * 8 / 512] = true;
  if (old != 0)
    quarantine_.push_back({{old, header_.cluster_size()}, false, pins_.Now(), generation_});
  return {};
}

Result<TableCache::Ref> Qcow2Layer::WritableSlice(uint64_t guest) {
  uint64_t l1_index = guest / header_.l2_span();
  bool ours = false;
  {
    Lock lock(mutex_);
    ours = l1_[l1_index] & kCopied;
  }
  if (!ours) {
    std::lock_guard tables(tables_mutex_);
    TRY(MakeTable(guest));
  }
  Lock lock(mutex_);
  TableCache::Ref slice = TRY(FindSlice(lock, guest));
  if (refcounts_->IsFixed({slice.offset(), slice_bytes()})) {
    return Fail(Code::kCorrupt,
                "L1 entry {}: the L2 table at {:#x} lies on the header or another table", l1_index,
                slice.offset());
  }
  return slice;
}

// What a write to `part` of a cluster does to it.
struct Qcow2Layer::Plan {
  Cluster old;
  L2Entry entry;            // as it is
  uint64_t guest = 0;       // of the cluster
  Range target;             // guest bytes to be written: the part, widened to what must be filled
  bool takes_host = false;  // a new host cluster
};

Qcow2Layer::Plan Qcow2Layer::PlanCluster(const Cluster& old, L2Entry entry, uint64_t guest,
                                         Range part) const {
  uint64_t size = header_.cluster_size();
  Range cluster = Range{guest, size}.Intersect({0, info_.size});
  Plan plan{.old = old, .entry = entry, .guest = guest, .target = part};
  bool reusable = old.copied && old.host != 0 && old.kind != ClusterKind::kCompressedUnit;
  if (data_store_)
    reusable = old.kind == ClusterKind::kNormal || old.kind == ClusterKind::kZeroAllocated;
  plan.takes_host = !reusable;
  // Sectors of a cipher are written whole.
  if (cipher_) plan.target = part.Outward(Cipher::kSector).Intersect(cluster);
  if (reusable && !header_.extended_l2() && old.kind == ClusterKind::kNormal) return plan;
  bool keeps_subclusters =
      header_.extended_l2() &&
      (reusable || old.kind == ClusterKind::kUnallocated || old.kind == ClusterKind::kZeroPlain);
  if (!keeps_subclusters) {
    plan.target = cluster;
    return plan;
  }
  // Only the subclusters at the edges that have no bytes of their own yet are filled.
  uint64_t step = header_.subcluster_size();
  uint64_t first = (part.offset - guest) / step, last = (part.end() - 1 - guest) / step;
  auto allocated = [&](uint64_t sub) { return reusable && (old.allocated >> sub & 1); };
  if (!allocated(first)) plan.target = Range::FromTo(guest + first * step, plan.target.end());
  if (!allocated(last))
    plan.target =
        Range::FromTo(plan.target.offset, std::min(cluster.end(), guest + (last + 1) * step));
  return plan;
}

L2Entry Qcow2Layer::NewEntry(const Plan& plan, uint64_t host) const {
  L2Entry entry{.descriptor = host | kCopied, .bitmap = 0};
  if (!header_.extended_l2()) return entry;
  uint64_t step = header_.subcluster_size();
  uint32_t written = SubclusterMask((plan.target.offset - plan.guest) / step,
                                    DivideUp(plan.target.end() - plan.guest, step));
  bool whole = plan.target.length == header_.cluster_size() || plan.target.end() == info_.size;
  uint32_t allocated = written | (plan.takes_host ? 0 : plan.old.allocated);
  if (whole && plan.target.offset == plan.guest) allocated |= ~uint32_t{0};
  uint32_t zero = plan.old.kind == ClusterKind::kCompressedUnit ? 0 : plan.old.zero & ~allocated;
  entry.bitmap = uint64_t{zero} << 32 | allocated;
  return entry;
}

Range Qcow2Layer::DroppedBy(const Plan& plan) const {
  if (!plan.takes_host || plan.old.host == 0) return {};
  if (plan.old.kind == ClusterKind::kCompressedUnit) return {plan.old.host, plan.old.length};
  return {plan.old.host, header_.cluster_size()};
}

Result<std::vector<Qcow2Layer::Plan>> Qcow2Layer::PlanRange(const TableCache::Ref& slice,
                                                            Range range) const {
  std::vector<Plan> plans;
  Lock lock(mutex_);
  for (uint64_t guest = RoundDown(range.offset, header_.cluster_size()); guest < range.end();
       guest += header_.cluster_size()) {
    L2Entry entry = LoadEntry(slice, guest);
    Cluster old = TRY(DecodeL2(header_, entry, guest));
    Range part = range.Intersect({guest, header_.cluster_size()});
    plans.push_back(PlanCluster(old, entry, guest, part));
    if (!plans.back().takes_host && refcounts_->IsFixed({old.host, header_.cluster_size()}) &&
        !data_store_) {
      return Fail(Code::kCorrupt, "guest {:#x}: its cluster at {:#x} lies on the header or a table",
                  guest, old.host);
    }
  }
  return plans;
}

Result<std::unique_ptr<Reservation>> Qcow2Layer::Reserve(Range want) {
  TRY(CheckRange(want));
  TRY(StartWriting());
  sched::Yield("reserve");
  uint64_t cluster = header_.cluster_size();
  uint64_t most = std::max(cluster, kMostReserved);
  uint64_t end = std::min({want.end(), RoundDown(want.offset, slice_span()) + slice_span(),
                           RoundDown(want.offset, cluster) + most});
  Range range = Range::FromTo(want.offset, end);
  RangeLock::Guard guard = reservations_.Lock(range.Outward(cluster));
  TableCache::Ref slice = TRY(WritableSlice(range.offset));
  std::vector<Plan> plans = TRY(PlanRange(slice, range));

  auto reservation = std::make_unique<Qcow2Reservation>(*this, std::move(guard), std::move(slice));
  reservation->range_ = range;
  for (size_t i = 0; i < plans.size();) {
    size_t run = i;
    while (run < plans.size() && plans[run].takes_host) ++run;
    if (run == i) {
      TRY(AddToReservation(*reservation, plans[i], plans[i].old.host, false));
      ++i;
      continue;
    }
    Range host{plans[i].guest, (run - i) * cluster};  // with a data file: the same place
    uint64_t zeros_from = UINT64_MAX;                 // host space from here on reads as zeros
    if (!data_store_) {
      Refcounts::Run found = TRY(refcounts_->Allocate(run - i));
      host = found.host;
      if (!store_->caps().block_device) zeros_from = found.virgin_from;
      reservation->taken_.push_back(host);
    }
    for (uint64_t at = host.offset; at < host.end(); at += cluster, ++i) {
      TRY(AddToReservation(*reservation, plans[i], at, at >= zeros_from));
    }
  }
  return reservation;
}

Result<> Qcow2Layer::AddToReservation(Qcow2Reservation& reservation, Plan plan, uint64_t host,
                                      bool host_is_zero) {
  bool old_is_zero = plan.old.kind == ClusterKind::kZeroPlain ||
                     plan.old.kind == ClusterKind::kZeroAllocated ||
                     (plan.old.kind == ClusterKind::kUnallocated && !header_.has_backing);
  L2Entry entry = NewEntry(plan, host);
  if (host_is_zero && old_is_zero && !cipher_) {
    // The unwritten rest of the new cluster reads as zeros by itself, once the file reaches there.
    TRY(EnsureFileCovers(host + header_.cluster_size()));
    plan.target = plan.target.Intersect(reservation.range_);
  }
  reservation.AddTarget(plan.target, host + (plan.target.offset - plan.guest));
  if (entry.descriptor != plan.entry.descriptor || entry.bitmap != plan.entry.bitmap) {
    reservation.edits_.push_back({plan.guest, entry, DroppedBy(plan)});
  }
  return {};
}

Result<std::unique_ptr<Reservation>> Qcow2Layer::ReservePacked(Range units,
                                                               std::span<const uint32_t> sizes) {
  TRY(CheckRange(units));
  if (!info_.compressed_units)
    return Fail(Code::kUnsupported, "compressed clusters cannot be written to an image with {}",
                cipher_ ? "encryption" : "an external data file");
  uint64_t cluster = header_.cluster_size();
  bool whole = IsAligned(units.offset, cluster) &&
               (IsAligned(units.end(), cluster) || units.end() == info_.size);
  if (!whole || sizes.size() != DivideUp(units.length, cluster))
    return Fail(Code::kOutOfRange, "bytes {} to {} are not whole clusters", units.offset,
                units.end());
  for (uint32_t size : sizes) {
    if (size == 0 || size > cluster)
      return Fail(Code::kOutOfRange, "a compressed cluster of {} bytes", size);
  }
  TRY(StartWriting());
  sched::Yield("reserve");
  Range range = Range::FromTo(
      units.offset, std::min(units.end(), RoundDown(units.offset, slice_span()) + slice_span()));
  RangeLock::Guard guard = reservations_.Lock(range.Outward(cluster));
  TableCache::Ref slice = TRY(WritableSlice(range.offset));
  std::vector<Plan> plans = TRY(PlanRange(slice, range));
  std::vector<uint64_t> hosts =
      TRY(refcounts_->AllocatePacked(sizes.first(plans.size()), CompressedHostLimit(header_)));

  auto reservation = std::make_unique<Qcow2Reservation>(*this, std::move(guard), std::move(slice));
  reservation->range_ =
      Range::FromTo(range.offset, std::min(range.end(), range.offset + hosts.size() * cluster));
  for (size_t i = 0; i < hosts.size(); ++i) {
    Range host{hosts[i], sizes[i]};
    reservation->taken_.push_back(host);
    plans[i].takes_host = true;
    reservation->target_.push_back(
        {.guest = Range{plans[i].guest, cluster}.Intersect(range),
         .kind = Kind::kData,
         .store = store_.get(),
         .host = host,
         .codec = {.id = header_.compression == kCompressionZstd ? Codec::kZstd : Codec::kDeflate,
                   .unit = static_cast<uint32_t>(cluster)}});
    reservation->edits_.push_back(
        {plans[i].guest, EncodeCompressed(header_, host.offset, sizes[i]), DroppedBy(plans[i])});
  }
  return reservation;
}

Result<> Qcow2Layer::FlushIfLarge() {
  if (l2_.dirty_bytes() + refcounts_->dirty_bytes() < kMostDirtyBytes) return {};
  return Flush();
}

}  // namespace platter::qcow2
