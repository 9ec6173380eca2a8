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
// leaks. Bits for a new part of the disk are zero, as QEMU has it, and bits past the end are
// dropped. A bitmap whose table is damaged stays in use.
//
// Exclusive, as all of Resize.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {

namespace {

uint64_t BitsFor(const Bitmap& bitmap, uint64_t size) {
  return DivideUp(size, bitmap.info.granularity);
}

// Clears bits from `first` on; a byte holds the lowest bit first.
void ClearBits(Bytes bits, uint64_t first) {
  bits[first / 8] &= static_cast<std::byte>((1u << first % 8) - 1);
  std::ranges::fill(bits.subspan(first / 8 + 1), std::byte{0});
}

}  // namespace

// Table entries that the bits for `size` bytes of disk need.
uint64_t Qcow2Layer::BitmapEntries(const Bitmap& bitmap, uint64_t size) const {
  return DivideUp(DivideUp(BitsFor(bitmap, size), 8), cluster_size());
}

// Before anything changes: whether the bitmaps can follow.
Result<> Qcow2Layer::CheckBitmapsCanGrow(uint64_t size) const {
  for (const Bitmap& bitmap : bitmaps_) {
    if (bitmap.info.in_use || BitmapEntries(bitmap, size) * cluster_size() <= kMaxBitmapBytes) {
      continue;
    }
    return Fail(Code::kUnsupported,
                "bitmap '{}' would have more than {} bytes of bits: remove it first",
                Printable(bitmap.info.name), kMaxBitmapBytes);
  }
  return {};
}

// Marks bitmaps that are not, and returns which: all of them, or those that are to follow the
// guest's writes.
Result<std::vector<size_t>> Qcow2Layer::MarkBitmapsInUse(bool all) {
  std::vector<size_t> marked;
  for (size_t i = 0; i < bitmaps_.size(); ++i) {
    if (bitmaps_[i].info.in_use || !(all || bitmaps_[i].info.enabled)) continue;
    TRY(SetBitmapInUse(i, true));
    marked.push_back(i);
  }
  if (!marked.empty()) TRY(file_->Sync());
  return marked;
}

Result<> Qcow2Layer::SetBitmapInUse(size_t index, bool in_use) {
  Bitmap& bitmap = bitmaps_[index];
  const uint32_t flags = in_use ? bitmap.flags | kBitmapInUse : bitmap.flags & ~kBitmapInUse;
  TRY(WriteBitmapField(bitmap, offsetof(DiskBitmapEntry, flags), AsBytes(be32(flags))));
  bitmap.flags = flags;
  bitmap.info.in_use = info_.bitmaps[index].in_use = in_use;
  return {};
}

Result<> Qcow2Layer::WriteBitmapField(const Bitmap& bitmap, uint64_t field, ConstBytes value) {
  return file_->Write(format_.bitmaps->directory_offset + bitmap.at + field, value)
      .WithPrefix("bitmap directory");
}

// Steps 3 to 7 for the bitmaps that were marked before the disk changed from `old_size`.
Result<> Qcow2Layer::ResizeBitmaps(const std::vector<size_t>& marked, uint64_t old_size) {
  std::vector<std::pair<size_t, BitmapChange>> changes;
  for (size_t index : marked) {
    auto change = PlanBitmapChange(bitmaps_[index], old_size);
    if (!change && change.error().code() == Code::kCorrupt) continue;  // stays in use
    changes.emplace_back(index, TRY(std::move(change)));
  }
  if (changes.empty()) return {};
  TRY(Flush());
  TRY(file_->Sync());

  auto step = [&](auto write) -> Result<> {
    for (auto& [index, change] : changes) TRY(write(index, change));
    return file_->Sync();
  };
  auto set_length = [&](size_t index, uint64_t length) {
    bitmaps_[index].table_size = static_cast<uint32_t>(length);
    return WriteBitmapField(bitmaps_[index], offsetof(DiskBitmapEntry, table_size),
                            AsBytes(be32(bitmaps_[index].table_size)));
  };
  TRY(step([&](size_t index, BitmapChange&) { return set_length(index, 0); }));
  TRY(step([&](size_t index, BitmapChange& change) { return PlaceBitmapTable(index, change); }));
  TRY(step([&](size_t index, BitmapChange& change) {
    return set_length(index, change.entries.size());
  }));
  TRY(step([&](size_t index, BitmapChange&) { return SetBitmapInUse(index, false); }));
  return FreeBitmapSpace(changes);
}

Result<> Qcow2Layer::PlaceBitmapTable(size_t index, const BitmapChange& change) {
  std::vector<std::byte> table(RoundUp(change.entries.size() * 8, cluster_size()));
  for (size_t i = 0; i < change.entries.size(); ++i) {
    StoreAt(Bytes(table), i * 8, be64(change.entries[i]));
  }
  if (!table.empty()) {
    TRY_AS("bitmap table", file_->Write(change.table_offset, ConstBytes(table)));
  }
  bitmaps_[index].table_offset = change.table_offset;
  return WriteBitmapField(bitmaps_[index], offsetof(DiskBitmapEntry, table_offset),
                          AsBytes(be64(change.table_offset)));
}

Result<> Qcow2Layer::FreeBitmapSpace(const std::vector<std::pair<size_t, BitmapChange>>& changes) {
  uint64_t generation = 0;
  {
    std::lock_guard lock(map_mutex_);
    generation = generation_;
  }
  for (const auto& [index, change] : changes) {
    for (Range gone : change.gone) allocator_->Retire(gone, generation, /*punch=*/true);
  }
  // The first frees, the second writes what that changed. Then the next write of the guest is the
  // first one again: it marks the enabled bitmaps.
  TRY(Flush());
  TRY(Flush());
  writing_.store(false, std::memory_order_release);
  return {};
}

// Step 3 for one bitmap. kCorrupt where its table is not what it must be.
Result<Qcow2Layer::BitmapChange> Qcow2Layer::PlanBitmapChange(const Bitmap& bitmap,
                                                              uint64_t old_size) {
  const uint64_t keep = BitsFor(bitmap, std::min(old_size, info_.size));
  const uint64_t kept = DivideUp(DivideUp(keep, 8), cluster_size());
  BitmapChange change;
  change.table_offset = bitmap.table_offset;
  change.entries = TRY(LoadBitmapTable(bitmap));
  for (uint64_t i = kept; i < change.entries.size(); ++i) {
    uint64_t offset = change.entries[i] & kOffsetMask;
    if (offset != 0) change.gone.push_back({offset, cluster_size()});
  }
  change.entries.resize(kept);
  const uint64_t tail = keep % (cluster_size() * 8);
  if (tail != 0) TRY(CutBitmapCluster(change.entries.back(), tail));
  change.entries.resize(BitmapEntries(bitmap, info_.size));

  const Range old =
      Range{bitmap.table_offset, uint64_t{bitmap.table_size} * 8}.Outward(cluster_size());
  const uint64_t needed = RoundUp(change.entries.size() * 8, cluster_size());
  if (needed > old.length) {
    Clusters place = TRY(allocator_->AllocateTogether(needed >> format_.cluster_bits));
    change.table_offset = place.first << format_.cluster_bits;
    if (!old.empty()) change.gone.push_back(old);
  } else if (needed < old.length) {
    change.gone.push_back(Range::FromTo(old.offset + needed, old.end()));
    if (needed == 0) change.table_offset = 0;
  }
  return change;
}

// Every cluster that an entry names is the bitmap's alone, as far as the image can tell.
Result<std::vector<uint64_t>> Qcow2Layer::LoadBitmapTable(const Bitmap& bitmap) {
  EntryTable table;
  TRY(table.Load(*file_, "bitmap table", bitmap.table_offset, bitmap.table_size));
  std::vector<uint64_t> entries(table.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    entries[i] = table[i];
    const uint64_t offset = entries[i] & kOffsetMask;
    bool sound = !(entries[i] & kBitmapReserved) && !(offset != 0 && entries[i] & kBitmapAllOnes);
    if (sound && offset != 0) {
      sound = IsAligned(offset, cluster_size()) &&
              FitsIn(offset, cluster_size(), allocator_->file_size()) &&
              metadata_.Find({offset, cluster_size()}).empty() &&
              TRY(allocator_->Refcount(offset)) == 1;
    }
    if (!sound) return Fail(Code::kCorrupt, "bitmap table entry {} ({:#x})", i, entries[i]);
  }
  return entries;
}

// What `entry` says from bit `first` of its cluster on becomes zero.
Result<> Qcow2Layer::CutBitmapCluster(uint64_t& entry, uint64_t first) {
  uint64_t offset = entry & kOffsetMask;
  if (offset == 0 && !(entry & kBitmapAllOnes)) return {};
  std::vector<std::byte> bits(cluster_size(), std::byte{0xff});
  if (offset != 0) {
    TRY_AS("bitmap", file_->Read(offset, Bytes(bits)));
  } else {
    offset = TRY(allocator_->AllocateTogether(1)).first << format_.cluster_bits;
  }
  ClearBits(bits, first);
  entry = offset;
  return file_->Write(offset, ConstBytes(bits)).WithPrefix("bitmap");
}

}  // namespace platter::qcow2
