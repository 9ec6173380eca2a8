// Persistent bitmaps of an image whose disk changes its size.
//
// A bitmap that anybody may trust (not "in use") has one bit for each granule of the disk, and as
// many table entries as those bits need. So its table changes with the disk:
//
//   1. every bitmap that was trusted is marked as in use; Sync
//   2. the disk gets its new size
//   3. the space that the new tables need, and what they need to name, is counted; Flush
//   4. in the directory the tables get length 0; Sync. So no torn write makes one reach over what
//   is
//      not its own
//   5. the tables are written, and their place in the directory; Sync; then their length; Sync
//   6. what step 1 marked is marked no more; Sync
//   7. what is not named any more is freed
//
// A power cut in between leaves bitmaps that say of themselves that they are not to be trusted, and
// leaks. Bits past the end are dropped. A bitmap whose table is damaged stays in use.
//
// The new part of the disk is zero in a bitmap that is not enabled, as QEMU has it. In one that is,
// it is dirty: it may have shown other bytes before, if the disk was larger once, and an earlier
// backup may hold them. So is a granule of which the disk had a part only.
//
// Exclusive, as all of Resize.
#include <algorithm>
#include <mutex>

#include "formats/qcow2/qcow2_bitmaps.h"

namespace platter::qcow2 {

// Before anything changes: whether the bitmaps can follow.
Result<> Qcow2Bitmaps::CheckCanGrow(uint64_t size) const {
  for (const Bitmap& bitmap : bitmaps_) {
    if (bitmap.info.in_use || EntriesFor(bitmap, size) * page_bytes() <= kMaxBitmapBytes) continue;
    return Fail(Code::kUnsupported,
                "bitmap '{}' would have more than {} bytes of bits: remove it first",
                Printable(bitmap.info.name), kMaxBitmapBytes);
  }
  return {};
}

Result<std::vector<size_t>> Qcow2Bitmaps::MarkAllInUse() {
  std::vector<size_t> marked;
  for (size_t i = 0; i < bitmaps_.size(); ++i) {
    if (bitmaps_[i].info.in_use) continue;
    TRY(SetInUse(i, true));
    marked.push_back(i);
  }
  if (!marked.empty()) TRY(layer_.file_->Sync());
  return marked;
}

Result<> Qcow2Bitmaps::SetInUse(size_t index, bool in_use) {
  TRY(WriteInUse(index, in_use));
  bitmaps_[index].info.in_use = layer_.info_.bitmaps[index].in_use = in_use;
  return {};
}

// Steps 3 to 7 for the bitmaps that were marked before the disk changed from `old_size`.
Result<> Qcow2Bitmaps::Resize(const std::vector<size_t>& marked, uint64_t old_size) {
  std::vector<std::pair<size_t, Change>> changes;
  for (size_t index : marked) {
    auto change = PlanChange(bitmaps_[index], old_size);
    if (!change && change.error().code() == Code::kCorrupt) continue;  // stays in use
    changes.emplace_back(index, TRY(std::move(change)));
  }
  if (changes.empty()) return {};
  TRY(layer_.Flush());
  TRY(layer_.file_->Sync());

  auto step = [&](auto write) -> Result<> {
    for (auto& [index, change] : changes) TRY(write(index, change));
    return layer_.file_->Sync();
  };
  auto set_length = [&](size_t index, uint64_t length) {
    bitmaps_[index].table_size = static_cast<uint32_t>(length);
    return WriteField(bitmaps_[index], offsetof(DiskBitmapEntry, table_size),
                      AsBytes(be32(bitmaps_[index].table_size)));
  };
  TRY(step([&](size_t index, Change&) { return set_length(index, 0); }));
  TRY(step([&](size_t index, Change& change) { return PlaceChanged(index, change); }));
  TRY(step([&](size_t index, Change& change) { return set_length(index, change.entries.size()); }));
  TRY(step([&](size_t index, Change&) { return SetInUse(index, false); }));
  std::vector<Range> gone;
  for (const auto& [index, change] : changes) {
    gone.insert(gone.end(), change.gone.begin(), change.gone.end());
  }
  TRY(Free(gone));
  // The next write of the guest is the first one again: it begins to track.
  layer_.writing_.store(false, std::memory_order_release);
  return {};
}

Result<> Qcow2Bitmaps::PlaceChanged(size_t index, const Change& change) {
  Bitmap& bitmap = bitmaps_[index];
  bitmap.table_offset = change.table_offset;
  TRY(WriteTable(bitmap, change.entries));
  return WriteField(bitmap, offsetof(DiskBitmapEntry, table_offset),
                    AsBytes(be64(change.table_offset)));
}

// Step 3 for one bitmap. kCorrupt where its table is not what it must be.
Result<Qcow2Bitmaps::Change> Qcow2Bitmaps::PlanChange(const Bitmap& bitmap, uint64_t old_size) {
  const uint64_t keep = DivideUp(std::min(old_size, layer_.info_.size), bitmap.info.granularity);
  const uint64_t kept = DivideUp(DivideUp(keep, 8), page_bytes());
  Change change;
  change.table_offset = bitmap.table_offset;
  change.entries = TRY(LoadTable(bitmap));
  for (uint64_t i = kept; i < change.entries.size(); ++i) {
    uint64_t offset = change.entries[i] & kOffsetMask;
    if (offset != 0) change.gone.push_back({offset, page_bytes()});
  }
  change.entries.resize(kept);
  const bool dirty = bitmap.info.enabled && layer_.info_.size > old_size;
  // Also of a granule that the disk ended in: the rest of it is new.
  const uint64_t first = dirty ? old_size / bitmap.info.granularity : keep;
  // Bits past the end of the disk stay clear: QEMU would show them when the disk grows.
  const uint64_t end = dirty ? DivideUp(layer_.info_.size, bitmap.info.granularity) : keep;
  const uint64_t in_page = page_bytes() * 8;
  if (first < kept * in_page) {
    const uint64_t before = (kept - 1) * in_page;
    TRY(EndCluster(change.entries.back(),
                   Range::FromTo(first - before, std::min(end - before, in_page))));
  }
  change.entries.resize(EntriesFor(bitmap, layer_.info_.size), dirty ? kBitmapAllOnes : 0);

  const Range old =
      Range{bitmap.table_offset, uint64_t{bitmap.table_size} * 8}.Outward(page_bytes());
  const uint64_t needed = RoundUp(change.entries.size() * 8, page_bytes());
  if (needed > old.length) {
    Clusters place =
        TRY(layer_.allocator_->AllocateTogether(needed >> layer_.format_.cluster_bits));
    change.table_offset = place.first << layer_.format_.cluster_bits;
    if (!old.empty()) change.gone.push_back(old);
  } else if (needed < old.length) {
    change.gone.push_back(Range::FromTo(old.offset + needed, old.end()));
    if (needed == 0) change.table_offset = 0;
  }
  return change;
}

// Of the cluster that `entry` names, the bits `dirty` (numbers, maybe none) are set, and those
// behind them clear.
Result<> Qcow2Bitmaps::EndCluster(uint64_t& entry, Range dirty) {
  uint64_t offset = entry & kOffsetMask;
  const bool ones = entry & kBitmapAllOnes;
  if (offset == 0 && !ones && dirty.empty()) return {};
  std::vector<std::byte> bits(page_bytes(), static_cast<std::byte>(ones ? 0xff : 0));
  if (offset != 0) {
    TRY_AS("bitmap", layer_.file_->Read(offset, Bytes(bits)));
  } else {
    offset = TRY(layer_.allocator_->AllocateTogether(1)).first << layer_.format_.cluster_bits;
  }
  SetBits(bits, dirty.offset, dirty.length);
  ClearBits(bits, dirty.end());
  entry = offset;
  return layer_.file_->Write(offset, ConstBytes(bits)).WithPrefix("bitmap");
}

}  // namespace platter::qcow2
