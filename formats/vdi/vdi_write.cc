// Reserve, Publish and Discard. A block that has a place is written there; one that has none gets a
// host block, filled to its borders from the old view.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/vdi/vdi_reservation.h"

namespace platter::vdi {

namespace {
// One reservation covers at most this, and at least a block.
constexpr uint64_t kMostReserved = 8 * kMiB;
}  // namespace

Result<std::unique_ptr<Reservation>> VdiLayer::Reserve(Range want) {
  TRY(Named(CheckWritable(want)));
  const uint64_t block = header_.block_size;
  uint64_t end = std::min({want.end(), SliceEnd(want.offset),
                           RoundDown(want.offset, block) + std::max(block, kMostReserved)});
  want = Range::FromTo(want.offset, end);
  sched::Yield("reserve");
  auto reservation = std::make_unique<VdiReservation>(*this, ranges_.Lock(want.Outward(block)));
  Result<> planned = Plan(*reservation, want);
  if (!planned.has_value() && planned.error().code() == Code::kNoSpace &&
      allocator_->HasRetired()) {
    // Something may come free.
    reservation->Reset();
    TRY(Flush());
    planned = Plan(*reservation, want);
  }
  TRY(Named(std::move(planned)));
  return std::unique_ptr<Reservation>(std::move(reservation));
}

// An entry that was sound when the image was opened names what the file holds.
Result<> VdiLayer::CheckKnown(uint32_t block, uint32_t entry) const {
  if (header_.HostBlock(entry).end() <= DataEnd()) return {};
  return Fail(Code::kCorrupt, "block {} is in host block {}, past the end of the file ({:#x})",
              block, entry, DataEnd());
}

Result<> VdiLayer::Plan(VdiReservation& reservation, Range want) {
  reservation.slice_ = TRY(LoadSlice(want.offset));
  const std::vector<uint32_t> entries = ReadEntries(reservation.slice_, want);
  auto needed = static_cast<uint32_t>(
      std::ranges::count_if(entries, [](uint32_t entry) { return !IsHostBlock(entry); }));
  if (needed > 0) reservation.fresh_ = TRY(allocator_->Allocate(needed));
  const Run& fresh = reservation.fresh_;
  uint32_t next = fresh.first, block = BlockOf(want.offset);
  for (uint32_t old : entries) {
    const Range whole = BlockRange(block), part = whole.Intersect(want);
    if (IsHostBlock(old)) {
      TRY(CheckKnown(block, old));
      reservation.AddTarget(part, header_.HostBlock(old).offset + (part.offset - whole.offset));
    } else {
      if (next == fresh.end()) break;
      // Zeros need not be written where there are zeros already.
      const bool zero = fresh.zeroed && (old == kDiscarded || !header_.differencing());
      const Range here = zero ? part : whole;
      reservation.AddTarget(here, header_.HostBlock(next).offset + (here.offset - whole.offset));
      reservation.AddFill(Range::FromTo(here.offset, part.offset));
      reservation.AddFill(Range::FromTo(part.end(), here.end()));
      reservation.updates_.push_back({block, next++});
    }
    reservation.range_ = Range::FromTo(want.offset, part.end());
    ++block;
  }
  return {};
}

void VdiReservation::AddTarget(Range guest, uint64_t host) {
  if (!target_.empty() && target_.back().guest.end() == guest.offset &&
      target_.back().host.end() == host) {
    target_.back().guest.length += guest.length;
    target_.back().host.length += guest.length;
    return;
  }
  Extent extent;
  extent.guest = guest;
  extent.kind = Kind::kData;
  extent.store = layer_.file_.get();
  extent.host = {host, guest.length};
  target_.push_back(extent);
}

void VdiReservation::AddFill(Range range) {
  if (range.empty()) return;
  if (!fill_.empty() && fill_.back().end() == range.offset) {
    fill_.back().length += range.length;
  } else {
    fill_.push_back(range);
  }
}

Result<> VdiReservation::Publish() {
  sched::Yield("publish");
  layer_.WriteEntries(slice_, updates_);
  fresh_ = {};
  return {};
}

void VdiReservation::Reset() {
  GiveBack();
  slice_ = {};
  range_ = {};
  target_.clear();
  fill_.clear();
  updates_.clear();
}

Result<Range> VdiLayer::Discard(Range want, Kind leave) {
  CHECK(leave != Kind::kData);
  TRY(Named(CheckWritable(want)));
  return Named(DiscardSome(want, leave));
}

// A fixed image keeps its blocks: their bytes are zeroed where they are, whatever their borders.
Result<Range> VdiLayer::DiscardSome(Range want, Kind leave) {
  const uint64_t unit = header_.block_size;
  Range part = want;
  if (!fixed()) {
    uint64_t first = RoundUp(want.offset, unit);
    uint64_t end = want.end() == info_.size ? want.end() : RoundDown(want.end(), unit);
    part = Range::FromTo(first, std::max(first, end));
  }
  if (part.empty()) return Range{want.offset, 0};
  part = Range::FromTo(part.offset, std::min(part.end(), SliceEnd(part.offset)));
  sched::Yield("discard");
  auto guard = ranges_.Lock(part.Outward(unit));
  TableCache::Ref slice = TRY(LoadSlice(part.offset));
  const std::vector<uint32_t> entries = ReadEntries(slice, part);
  std::vector<Update> updates;
  std::vector<uint32_t> gone;
  uint32_t block = BlockOf(part.offset);
  for (uint32_t old : entries) {
    if (IsHostBlock(old)) TRY(CheckKnown(block, old));
    if (fixed() && IsHostBlock(old)) {
      Range here = BlockRange(block).Intersect(part);
      uint64_t host = header_.HostBlock(old).offset + here.offset % unit;
      TRY(file_->Zero({host, here.length}, /*may_unmap=*/leave != Kind::kZero));
    } else if (uint32_t entry = DiscardedEntry(old, leave); entry != old) {
      updates.push_back({block, entry});
      if (IsHostBlock(old)) gone.push_back(old);
    }
    ++block;
  }
  uint64_t generation = WriteEntries(slice, updates);
  for (uint32_t host : gone) allocator_->Retire(host, generation);
  return part;
}

uint32_t VdiLayer::DiscardedEntry(uint32_t old, Kind leave) const {
  if (header_.differencing()) return leave == Kind::kParent ? kFree : kDiscarded;
  return IsHostBlock(old) ? kFree : old;
}

}  // namespace platter::vdi
