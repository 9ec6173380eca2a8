// Reserve and Publish. What becomes of the sectors of a request:
//
//   here (bit set)                  in place
//   in a block that has a place     its place in there, filled to sectors; the bits on Publish
//   in a dynamic disk's new block   a new unit; its other bytes are zeros already
//   in a differencing disk's        a new unit, filled to sectors
//
// A block that the batmap calls full, and that has no place, becomes full: it is filled to its
// borders.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/vhd/vhd_reservation.h"

namespace platter::vhd {

namespace {
// One reservation covers at most this, and at least a block.
constexpr uint64_t kMostReserved = 16 * kMiB;
}  // namespace

Result<std::unique_ptr<Reservation>> VhdLayer::Reserve(Range want) {
  TRY(Named(CheckWritable(want)));
  uint64_t index = want.offset / block_size();
  uint64_t slice_end = (index + (slice_bytes_ - InSlice(index)) / 4) * block_size();
  uint64_t most = index * block_size() + std::max<uint64_t>(block_size(), kMostReserved);
  want = Range::FromTo(want.offset, std::min({want.end(), slice_end, most}));
  sched::Yield("reserve");
  auto reservation =
      std::make_unique<VhdReservation>(*this, ranges_.Lock(want.Outward(block_size())));
  Result<> planned = Plan(*reservation, want);
  if (!planned.has_value() && planned.error().code() == Code::kNoSpace && allocator_.HasRetired()) {
    // Something may come free.
    reservation->Reset();
    TRY(Flush());
    planned = Plan(*reservation, want);
  }
  TRY(Named(std::move(planned)));
  return std::unique_ptr<Reservation>(std::move(reservation));
}

// The longest beginning of `want` whose blocks all have places, or all have none.
Result<> VhdLayer::Plan(VhdReservation& reservation, Range want) {
  reservation.slice_ = TRY(table_->Get(SliceOf(want.offset / block_size())));
  std::vector<Range> parts;
  std::vector<std::optional<uint64_t>> units;
  {
    std::lock_guard lock(map_mutex_);
    for (uint64_t at = want.offset; at < want.end();) {
      uint64_t index = at / block_size();
      Range part = Range::FromTo(at, std::min((index + 1) * block_size(), want.end()));
      auto unit = UnitAt(reservation.slice_.bytes(), index);
      if (!units.empty() && units.back().has_value() != unit.has_value()) break;
      parts.push_back(part);
      units.push_back(unit);
      at = part.end();
    }
  }
  if (!units.front()) return PlanFresh(reservation, parts);
  for (size_t i = 0; i < parts.size(); ++i) {
    TRY(PlanBlock(reservation, parts[i], *units[i]));
    reservation.range_ = Range::FromTo(want.offset, parts[i].end());
  }
  return {};
}

bool VhdLayer::BatmapSays(uint64_t index) const {
  return index / 8 < image_.batmap.size() && BitAt(image_.batmap, index);
}

Result<> VhdLayer::PlanFresh(VhdReservation& reservation, std::span<const Range> parts) {
  std::vector<uint64_t> units = TRY(allocator_.Allocate(parts.size()));
  for (size_t i = 0; i < units.size(); ++i) {
    reservation.fresh_.push_back({parts[i].offset / block_size(), units[i]});
  }
  std::vector<std::byte> bitmap(bitmap_size());
  for (size_t i = 0; i < units.size(); ++i) {
    const Range part = parts[i];
    const uint64_t index = part.offset / block_size(), start = index * block_size();
    Range whole = part;
    if (differencing()) {
      whole = BatmapSays(index) ? Range{start, block_size()} : part.Outward(kSector);
      whole = whole.Intersect({0, info_.size});
    }
    Range bits = differencing() ? BitsOf(whole) : Range{0, block_size()};
    if (BatmapSays(index)) bits = {0, block_size()};
    std::ranges::fill(bitmap, std::byte{0});
    SetBits(bitmap, bits.offset / kSector, bits.end() / kSector, true);
    // Whatever is remembered of the place is older than this.
    bitmaps_.Forget(units[i]);
    TRY_AS("sector bitmap", store_->Write(units[i], bitmap));
    reservation.Add(store_.get(), whole, units[i] + bitmap_size() + (whole.offset - start), part);
    reservation.range_ = Range::FromTo(parts[0].offset, part.end());
  }
  return {};
}

Result<> VhdLayer::PlanBlock(VhdReservation& reservation, Range part, uint64_t unit) {
  const uint64_t index = part.offset / block_size(), start = index * block_size();
  TRY(CheckUnit(unit, index, FileEnd()));
  TableCache::Ref bitmap = TRY(bitmaps_.Get(unit));
  const Range sectors = BitsOf(part);
  std::vector<Range> set;
  const uint64_t last = sectors.end() / kSector;
  std::lock_guard lock(map_mutex_);
  for (uint64_t bit = sectors.offset / kSector; bit < last;) {
    const bool here = BitAt(bitmap.bytes(), bit);
    uint64_t run = RunOfBits(bitmap.bytes(), bit, last);
    Range whole = Range{start + bit * kSector, run * kSector}.Intersect({0, info_.size});
    Range inside = whole.Intersect(part);
    if (here) whole = inside;
    reservation.Add(store_.get(), whole, unit + bitmap_size() + (whole.offset - start), inside);
    if (!here) set.push_back({bit, run});
    bit += run;
  }
  if (!set.empty()) reservation.bits_.push_back({std::move(bitmap), std::move(set)});
  return {};
}

void VhdReservation::Add(Store* store, Range whole, uint64_t host, Range part) {
  AddTarget(store, whole, host);
  AddFill(Range::FromTo(whole.offset, part.offset));
  AddFill(Range::FromTo(part.end(), whole.end()));
}

void VhdReservation::AddTarget(Store* store, Range guest, uint64_t host) {
  if (!target_.empty() && target_.back().guest.end() == guest.offset &&
      target_.back().host.end() == host) {
    target_.back().guest.length += guest.length;
    target_.back().host.length += guest.length;
    return;
  }
  Extent extent;
  extent.guest = guest;
  extent.kind = Kind::kData;
  extent.store = store;
  extent.host = {host, guest.length};
  target_.push_back(extent);
}

void VhdReservation::AddFill(Range range) {
  if (range.empty()) return;
  if (!fill_.empty() && fill_.back().end() == range.offset) {
    fill_.back().length += range.length;
  } else {
    fill_.push_back(range);
  }
}

Result<> VhdReservation::Publish() {
  sched::Yield("publish");
  std::lock_guard lock(layer_.map_mutex_);
  for (const Fresh& fresh : fresh_) {
    Bytes entry = slice_.Edit({layer_.InSlice(fresh.index), 4});
    StoreAt(entry, 0, be32(static_cast<uint32_t>(fresh.unit / kSector)));
  }
  fresh_.clear();
  for (Bits& bits : bits_) {
    for (Range run : bits.runs) EditBits(bits.bitmap, run, true);
  }
  return {};
}

void VhdReservation::Reset() {
  for (const Fresh& fresh : fresh_) layer_.allocator_.GiveBack(fresh.unit);
  fresh_.clear();
  bits_.clear();
  slice_ = {};
  target_.clear();
  fill_.clear();
  range_ = {};
}

}  // namespace platter::vhd
