// Discard: blocks that have no place any more, or sectors of a block. One step deals with whole
// blocks as far as a slice of the table goes, or with a part of one block; the engine comes back
// for the rest.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/vhd/vhd_layer.h"

namespace platter::vhd {

Result<Range> VhdLayer::Discard(Range want, Kind leave) {
  CHECK(leave != Kind::kData);
  TRY(Named(CheckWritable(want)));
  return Named(DiscardSome(want, leave));
}

Result<Range> VhdLayer::DiscardSome(Range want, Kind leave) {
  const Range nothing{want.offset, 0};
  // A differencing disk has no way to say "zeros" but zeros.
  if (differencing() && leave != Kind::kParent) return nothing;
  uint64_t end = want.end() == info_.size ? want.end() : RoundDown(want.end(), kSector);
  uint64_t first = RoundUp(want.offset, kSector);
  if (first >= end) return nothing;
  Range part = Range::FromTo(first, end);
  sched::Yield("discard");
  uint64_t whole_end = end == info_.size ? end : RoundDown(end, block_size());
  if (IsAligned(first, block_size()) && whole_end > first) {
    Range dropped = TRY(DropBlocks(Range::FromTo(first, whole_end)));
    if (!dropped.empty()) return dropped;
  }
  part.length = std::min(part.end(), RoundDown(first, block_size()) + block_size()) - first;
  Range dropped = TRY(DropInBlock(part));
  uint64_t next = RoundUp(first + 1, block_size());
  // Sectors cannot be dropped here; whole blocks behind them may.
  if (dropped.empty() && next < whole_end) return DropBlocks(Range::FromTo(next, whole_end));
  return dropped.empty() ? nothing : dropped;
}

// The first blocks of `blocks`; none where the batmap calls the first one full.
Result<Range> VhdLayer::DropBlocks(Range blocks, bool force) {
  const uint64_t first = blocks.offset / block_size();
  uint64_t last =
      std::min(DivideUp(blocks.end(), block_size()), first + (slice_bytes_ - InSlice(first)) / 4);
  uint64_t stop = first;
  while (stop < last && (force || !BatmapSays(stop))) ++stop;
  Range range = Range::FromTo(blocks.offset, std::min(stop * block_size(), blocks.end()));
  if (range.empty()) return range;
  auto guard = ranges_.Lock(range.Outward(block_size()));
  TableCache::Ref slice = TRY(table_->Get(SliceOf(first)));
  std::vector<uint64_t> gone;
  uint64_t generation = 0;
  {
    std::lock_guard lock(map_mutex_);
    for (uint64_t index = first; index < stop; ++index) {
      auto unit = UnitAt(slice.bytes(), index);
      if (!unit) continue;
      gone.push_back(*unit);
      StoreAt(slice.Edit({InSlice(index), 4}), 0, be32(kUnused));
    }
    generation = generation_;
  }
  for (uint64_t unit : gone) allocator_.Retire(unit, generation);
  return range;
}

Result<Range> VhdLayer::DropInBlock(Range part) {
  auto guard = ranges_.Lock(part.Outward(block_size()));
  const uint64_t index = part.offset / block_size();
  std::optional<uint64_t> unit;
  {
    TableCache::Ref slice = TRY(table_->Get(SliceOf(index)));
    std::lock_guard lock(map_mutex_);
    unit = UnitAt(slice.bytes(), index);
  }
  if (!unit) return part;  // it is not here anyway
  TRY(CheckUnit(*unit, index, FileEnd()));
  return DropSectors(part, *unit);
}

Result<Range> VhdLayer::DropSectors(Range part, uint64_t unit) {
  const uint64_t start = RoundDown(part.offset, block_size());
  if (!differencing()) {
    // The bits stay set: to readers that do not look at them the sectors have to be zeros as well.
    if (!store_->caps().punch) return Range{part.offset, 0};
    Range host{unit + bitmap_size() + (part.offset - start), part.length};
    TRY(store_->Zero(host.Intersect({0, FileEnd()}), /*may_unmap=*/true));
    return part;
  }
  if (BatmapSays(start / block_size())) return Range{part.offset, 0};
  TableCache::Ref bitmap = TRY(bitmaps_.Get(unit));
  Range bits = BitsOf(part);
  std::lock_guard lock(map_mutex_);
  EditBits(bitmap, {bits.offset / kSector, bits.length / kSector}, false);
  return part;
}

}  // namespace platter::vhd
