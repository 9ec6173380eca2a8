// Discard: whole blocks lose their place; a part of a present block is zeroed where it is, which
// gives its space back to the file system.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_layer.h"
#include "formats/vhdx/vhdx_slices.h"

namespace platter::vhdx {

Result<Range> VhdxLayer::Discard(Range want, Kind leave) {
  CHECK(leave != Kind::kData);
  TRY(Named(CheckWritable(want)));
  // Such an image keeps its blocks: what it is told to forget is overwritten by the caller.
  if (image_.metadata.leave_allocated) return Range{want.offset, 0};
  if (!has_parent() && leave == Kind::kParent) leave = Kind::kHole;
  return Named(DiscardSome(want, leave));
}

// What can be dropped at once at the beginning of `want`, or later.
Result<Range> VhdxLayer::DiscardSome(Range want, Kind leave) {
  for (uint64_t at = want.offset; at < want.end();) {
    const Range block = Range{RoundDown(at, block_size()), block_size()}.Intersect({0, info_.size});
    const Range part = block.Intersect(Range::FromTo(at, want.end()));
    if (part == block) {
      uint64_t end = want.end() == info_.size ? want.end() : RoundDown(want.end(), block_size());
      return DiscardBlocks(ReservableBlocks(Range::FromTo(at, end)), leave);
    }
    Range dropped = TRY(DiscardPart(part, leave));
    if (!dropped.empty()) return dropped;
    at = part.end();
  }
  return Range{want.offset, 0};
}

Result<Range> VhdxLayer::DiscardPart(Range part, Kind leave) {
  const Range nothing{part.offset, 0};
  auto guard = ranges_.Lock(part.Outward(block_size()));
  BatEntry entry = TRY(ReadEntry(part.offset / block_size()));
  const bool absent = entry.state == BlockState::kNotPresent;
  if (!entry.present()) {
    const bool reads_so = !has_parent() || absent == (leave == Kind::kParent);
    return reads_so ? part : nothing;
  }
  if (entry.state == BlockState::kPartiallyPresent || leave == Kind::kParent) return nothing;
  part = part.Inward(kLogSector);  // pages, which is what file systems can give back
  if (part.empty()) return nothing;
  TRY(file_->Zero({entry.host + part.offset % block_size(), part.length},
                  /*may_unmap=*/leave != Kind::kZero));
  return part;
}

// `part`: whole blocks.
Result<Range> VhdxLayer::DiscardBlocks(Range part, Kind leave) {
  sched::Yield("discard");
  auto guard = ranges_.Lock(part.Outward(block_size()));
  const BatEntry wanted{leave == Kind::kParent ? BlockState::kNotPresent : BlockState::kZero, 0};
  std::vector<TableCache::Ref> slices;
  std::vector<Update> updates;
  for (uint64_t at = part.offset; at < part.end(); at += block_size()) {
    const uint64_t block = at / block_size();
    BatEntry old = TRY(ReadEntry(block));
    if (old == wanted || (!has_parent() && !old.present() && !old.keeps_place())) continue;
    Update update{.block = block, .entry = wanted, .present = {}, .old = {}};
    if (old.present() || old.keeps_place()) update.old = {old.host, block_size()};
    updates.push_back(update);
  }
  if (updates.empty()) return part;
  const uint64_t entry =
      image_.regions.bat.offset + image_.metadata.PayloadIndex(part.offset / block_size()) * 8;
  slices.push_back(TRY(tables_.Get(SliceOf(entry))));
  uint64_t generation = TRY(Apply(updates));
  for (const Update& update : updates) space_.Retire(update.old, generation, /*punch=*/true);
  return part;
}

}  // namespace platter::vhdx
