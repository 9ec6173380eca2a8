// Reserve and Publish. What becomes of each block that a request touches:
//
//   fully present       in place
//   partially present   in place; the sectors written become present
//   anything else       a new block that reads as zeros: without a parent it is fully present at
//                       once; with one it is, too, if the request covers it, else partially present
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/endian.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_reservation.h"
#include "formats/vhdx/vhdx_slices.h"

namespace platter::vhdx {

namespace {
// One reservation covers at most this, and at least a block.
constexpr uint64_t kMostReserved = 32 * kMiB;
}  // namespace

Result<> VhdxLayer::CheckWritable(Range want) {
  TRY(CheckInside(want));
  if (!info_.writable) return Fail(Code::kReadOnly, "opened for reading");
  TRY(CheckDecided());
  return writing_ ? Result<>() : BeginWriting();
}

Result<> VhdxLayer::CheckDecided() const {
  if (!undecided_) return {};
  return Fail(Code::kIo, "a resize failed half-way: open the image again");
}

// The beginning of `want` whose entries are in one slice of the BAT, and whose bits in one of the
// sector bitmap.
Range VhdxLayer::ReservableBlocks(Range want) const {
  const uint64_t block = want.offset / block_size();
  const uint64_t index = image_.metadata.PayloadIndex(block);
  const uint64_t slice_end = RoundDown(index, kSliceBytes / 8) + kSliceBytes / 8;
  uint64_t last = block + std::max<uint64_t>(1, kMostReserved / block_size());
  while (last > block + 1 && image_.metadata.PayloadIndex(last - 1) >= slice_end) --last;
  uint64_t end = std::min(want.end(), last * block_size());
  const uint64_t bits = kSliceBytes * 8 * sector();
  if (has_parent()) end = std::min(end, RoundDown(want.offset, bits) + bits);
  return Range::FromTo(want.offset, end);
}

// The most pages that changing these blocks makes dirty.
uint64_t VhdxLayer::PagesFor(Range blocks) const {
  blocks = blocks.Outward(block_size());
  // Entries of the blocks, and of a sector bitmap.
  uint64_t pages = blocks.length / block_size() * 8 / kLogSector + 2;
  if (has_parent()) pages += 1 + blocks.length / sector() / 8 / kLogSector + 2;
  return pages;
}

Result<std::unique_ptr<Reservation>> VhdxLayer::Reserve(Range want) {
  TRY(Named(CheckWritable(want)));
  want = ReservableBlocks(want);
  sched::Yield("reserve");
  auto reservation =
      std::make_unique<VhdxReservation>(*this, ranges_.Lock(want.Outward(block_size())));
  Result<> planned = Plan(*reservation, want);
  if (!planned.has_value() && planned.error().code() == Code::kNoSpace && space_.HasRetired()) {
    TRY(Flush());  // something may come free
    reservation->Reset();
    planned = Plan(*reservation, want);
  }
  TRY(Named(std::move(planned)));
  return std::unique_ptr<Reservation>(std::move(reservation));
}

Result<> VhdxLayer::Plan(VhdxReservation& reservation, Range want) {
  reservation.slices_ = TRY(HoldSlices(want));
  std::vector<BatEntry> old;
  uint64_t needed = 0;
  for (uint64_t at = RoundDown(want.offset, block_size()); at < want.end(); at += block_size()) {
    old.push_back(TRY(ReadEntry(at / block_size())));
    if (!old.back().present()) ++needed;
  }
  uint64_t next = 0, end = 0;
  if (needed > 0) {
    SpaceMap::Run run = TRY(space_.Allocate(block_size(), needed));
    reservation.fresh_ = run.host;
    next = run.host.offset, end = run.host.end();
    // Nobody sees this space yet, so it is no matter how long that takes.
    if (!run.zeroed) TRY(file_->Zero(run.host, /*may_unmap=*/true));
  }
  uint64_t at = want.offset;
  for (const BatEntry& entry : old) {
    std::optional<uint64_t> fresh;
    if (!entry.present()) {
      if (next == end) break;
      fresh = next;
      next += block_size();
    }
    Range block{RoundDown(at, block_size()), block_size()};
    TRY(PlanBlock(reservation, block.Intersect(want), entry, fresh));
    at = block.end();
    reservation.range_ = Range::FromTo(want.offset, std::min(at, want.end()));
  }
  return {};
}

// The slices of BAT and sector bitmaps that hold what belongs to these blocks, in memory.
Result<std::vector<TableCache::Ref>> VhdxLayer::HoldSlices(Range blocks) {
  const uint64_t first = blocks.offset / block_size(), last = (blocks.end() - 1) / block_size();
  std::vector<TableCache::Ref> slices;
  auto hold = [&](uint64_t offset) -> Result<> {
    slices.push_back(TRY(tables_.Get(offset)));
    return {};
  };
  const uint64_t bat = image_.regions.bat.offset;
  auto entry = [&](uint64_t index) { return bat + RoundDown(index * 8, kSliceBytes); };
  TRY(hold(entry(image_.metadata.PayloadIndex(first))));
  if (entry(image_.metadata.PayloadIndex(last)) != slices[0].offset()) {
    TRY(hold(entry(image_.metadata.PayloadIndex(last))));
  }
  if (!has_parent()) return slices;
  uint64_t bitmap = TRY(OwnBitmap(first));
  TRY(hold(entry(image_.metadata.BitmapIndex(first))));
  TRY(hold(LocateBit(bitmap, blocks.offset).slice));
  return slices;
}

Result<BatEntry> VhdxLayer::ReadEntry(uint64_t block) {
  TableCache::Ref loaded;
  while (true) {
    Stop stop;
    std::optional<uint64_t> raw;
    {
      std::lock_guard lock(map_mutex_);
      raw = RawEntry(image_.metadata.PayloadIndex(block), stop);
    }
    if (raw) {
      BatEntry entry = TRY(ParsePayloadEntry(*raw, block, has_parent()));
      if (entry.present()) TRY(CheckHost("block", block, {entry.host, block_size()}));
      return entry;
    }
    loaded = TRY(tables_.Get(*stop.missing));
  }
}

Result<uint64_t> VhdxLayer::OwnBitmap(uint64_t block) {
  while (true) {
    auto bitmap = TRY(FindOrMakeBitmap(block));
    if (bitmap) return *bitmap;
    TRY(MakeRoom(1));
  }
}

// Nothing where there is no room for one more dirty page.
Result<std::optional<uint64_t>> VhdxLayer::FindOrMakeBitmap(uint64_t block) {
  const uint64_t index = image_.metadata.BitmapIndex(block), at = index * 8;
  const uint64_t bat = image_.regions.bat.offset;
  std::lock_guard create(create_mutex_);
  TableCache::Ref slice = TRY(tables_.Get(bat + RoundDown(at, kSliceBytes)));
  uint64_t raw = 0;
  {
    std::lock_guard lock(map_mutex_);
    raw = *LoadAt<le64>(slice.bytes(), at % kSliceBytes);
  }
  BatEntry entry = TRY(ParseBitmapEntry(raw, index));
  if (entry.present()) {
    TRY(CheckHost("sector bitmap of block", block, {entry.host, kMiB}));
    return std::optional(entry.host);
  }
  SpaceMap::Run run = TRY(space_.Allocate(kMiB, 1));
  if (!run.zeroed) {
    Result<> zeroed = file_->Zero(run.host, /*may_unmap=*/true);
    if (!zeroed.has_value()) {
      space_.GiveBack(run.host);
      return std::unexpected(std::move(zeroed.error()));
    }
  }
  // What this place held before, if it was a table, is nobody's any more.
  for (uint64_t part = 0; part < kMiB; part += kSliceBytes) tables_.Forget(run.host.offset + part);
  std::unique_lock lock(map_mutex_);
  if (!HasRoomLocked(1)) {
    lock.unlock();
    space_.GiveBack(run.host);
    return std::optional<uint64_t>();
  }
  EditLocked(bat + at, AsBytes(le64(EncodeEntry({BlockState::kFullyPresent, run.host.offset}))));
  return std::optional(run.host.offset);
}

Result<> VhdxLayer::PlanBlock(VhdxReservation& reservation, Range part, BatEntry old,
                              std::optional<uint64_t> fresh) {
  const uint64_t block = part.offset / block_size(), start = block * block_size();
  const Range whole = Range{start, block_size()}.Intersect({0, info_.size});
  Update update{.block = block, .entry = old, .present = {}, .old = {}};
  if (fresh) {
    const bool all = !has_parent() || part == whole;
    update.entry = {all ? BlockState::kFullyPresent : BlockState::kPartiallyPresent, *fresh};
    update.clear = !all;
    if (old.keeps_place()) update.old = {old.host, block_size()};
  } else if (part == whole) {
    update.entry.state = BlockState::kFullyPresent;
  }
  if (update.entry.state == BlockState::kPartiallyPresent) {
    TRY(PlanSectors(reservation, part, update, !fresh));
    reservation.updates_.push_back(update);
    return {};
  }
  reservation.AddTarget(DataExtent(part, update.entry.host + (part.offset - start)));
  if (update.entry != old) reservation.updates_.push_back(update);
  return {};
}

// `part` of a block that is, or becomes, partially present: sectors that are not here yet are
// filled to their borders. `partial`: it is already, so that some are here.
Result<> VhdxLayer::PlanSectors(VhdxReservation& reservation, Range part, Update& update,
                                bool partial) {
  const uint64_t start = update.block * block_size();
  const Range sectors = part.Outward(sector()).Intersect({0, info_.size});
  Range head = Range::FromTo(sectors.offset, part.offset);
  Range tail = Range::FromTo(part.end(), sectors.end());
  // Both may lie in one sector.
  if (partial && !head.empty() && TRY(IsPresent(head.offset))) head = {part.offset, 0};
  if (partial && !tail.empty() && TRY(IsPresent(tail.offset))) tail = {part.end(), 0};
  const Range target = Range::FromTo(head.offset, tail.end());
  reservation.AddTarget(DataExtent(target, update.entry.host + (target.offset - start)));
  reservation.AddFill(head);
  reservation.AddFill(tail);
  update.present = sectors;
  return {};
}

// Whether the sector at `guest`, of a partially present block whose slices are held, is here.
Result<bool> VhdxLayer::IsPresent(uint64_t guest) {
  Extent extent;
  Stop stop;
  std::lock_guard lock(map_mutex_);
  if (MapLocked({guest, 1}, std::span(&extent, 1), stop) > 0) return extent.kind == Kind::kData;
  CHECK(stop.failure);
  return std::unexpected(std::move(*stop.failure));
}

void VhdxReservation::Reset() {
  layer_.space_.GiveBack(std::exchange(fresh_, {}));
  target_.clear();
  fill_.clear();
  updates_.clear();
}

void VhdxReservation::AddTarget(const Extent& extent) {
  if (!target_.empty()) {
    Extent& last = target_.back();
    if (last.guest.end() == extent.guest.offset && last.host.end() == extent.host.offset) {
      last.guest.length += extent.guest.length;
      last.host.length += extent.host.length;
      return;
    }
  }
  target_.push_back(extent);
}

void VhdxReservation::AddFill(Range range) {
  if (!range.empty()) fill_.push_back(range);
}

Result<> VhdxReservation::Publish() {
  sched::Yield("publish");
  uint64_t generation = TRY(layer_.Named(layer_.Apply(updates_)));
  fresh_ = {};
  for (const VhdxLayer::Update& update : updates_) {
    layer_.space_.Retire(update.old, generation, /*punch=*/false);
  }
  return {};
}

// Changes entries and bits; returns the generation that they belong to. `updates` ascend.
Result<uint64_t> VhdxLayer::Apply(std::span<const Update> updates) {
  uint64_t pages = 0;
  if (!updates.empty()) {
    const uint64_t first = updates.front().block, end = updates.back().block + 1;
    pages = PagesFor({first * block_size(), (end - first) * block_size()});
  }
  while (true) {
    {
      std::lock_guard lock(map_mutex_);
      if (pages == 0 || HasRoomLocked(pages)) {
        for (const Update& update : updates) ApplyLocked(update);
        return generation_;
      }
    }
    TRY(MakeRoom(pages));
  }
}

void VhdxLayer::ApplyLocked(const Update& update) {
  const uint64_t index = image_.metadata.PayloadIndex(update.block);
  const le64 raw(EncodeEntry(update.entry));
  Stop stop;
  auto old = RawEntry(index, stop);
  CHECK(old);
  if (*old != raw) EditLocked(image_.regions.bat.offset + index * 8, AsBytes(raw));
  if (!update.clear && update.present.empty()) return;
  auto bitmap = RawEntry(image_.metadata.BitmapIndex(update.block), stop);
  CHECK(bitmap);
  const uint64_t host = *bitmap & kOffsetMask;
  if (update.clear) SetBitsLocked(host, {update.block * block_size(), block_size()}, false);
  if (!update.present.empty()) SetBitsLocked(host, update.present, true);
}

// Bytes of one slice that is in memory.
void VhdxLayer::EditLocked(uint64_t offset, ConstBytes bytes) {
  TableCache::Ref slice = tables_.TryGet(RoundDown(offset, kSliceBytes));
  CHECK(slice);
  Bytes into = slice.Edit({offset % kSliceBytes, bytes.size()});
  std::ranges::copy(bytes, into.begin());
  for (uint64_t page = RoundDown(offset, kLogSector); page < offset + bytes.size();
       page += kLogSector) {
    dirty_pages_.insert(page);
  }
}

// The bits of the sectors that `guest` touches, all in one slice.
void VhdxLayer::SetBitsLocked(uint64_t bitmap, Range guest, bool value) {
  const BitPlace place = LocateBit(bitmap, guest.offset);
  const uint64_t first = place.bit;
  const uint64_t end = first + DivideUp(guest.end() - RoundDown(guest.offset, sector()), sector());
  TableCache::Ref slice = tables_.TryGet(place.slice);
  CHECK(slice && end <= kSliceBytes * 8);
  ConstBytes old = slice.bytes().subspan(first / 8, DivideUp(end, 8) - first / 8);
  std::vector<std::byte> bits(old.begin(), old.end());
  for (uint64_t bit = first; bit < end;) {
    std::byte& byte = bits[bit / 8 - first / 8];
    if (bit % 8 == 0 && end - bit >= 8) {
      byte = value ? std::byte{0xff} : std::byte{0};
      bit += 8;
      continue;
    }
    const auto mask = static_cast<std::byte>(1u << (bit % 8));
    byte = value ? byte | mask : byte & ~mask;
    ++bit;
  }
  if (std::ranges::equal(old, bits)) return;
  EditLocked(place.slice + first / 8, bits);
}

}  // namespace platter::vhdx
