// Bitmaps that follow the guest's writes; the essay is in qcow2_bitmaps.h.
#include <algorithm>
#include <mutex>

#include "formats/qcow2/qcow2_bitmaps.h"

namespace platter::qcow2 {

namespace {
// Bytes of bits in memory. Past them whole pages are dirty as soon as they are touched: a backup
// copies more, and never less.
constexpr uint64_t kMostHeld = 256 * kMiB;
// Entries of all tables that are kept in memory, 64 MiB.
constexpr uint64_t kMostEntries = 8 * kMiB;
}  // namespace

Result<> Qcow2Bitmaps::StartTracking() {
  // Not empty: the last time something failed after they had been marked.
  bool marked = false;
  if (tracked_.empty()) {
    uint64_t entries = 0;
    for (size_t i = 0; i < bitmaps_.size(); ++i) {
      const Bitmap& bitmap = bitmaps_[i];
      if (!bitmap.info.enabled || bitmap.info.in_use) continue;
      entries += bitmap.table_size;
      if (entries > kMostEntries) {
        tracked_.clear();
        return Fail(Code::kUnsupported,
                    "the enabled bitmaps have more than {} table entries: disable some",
                    kMostEntries);
      }
      auto table = LoadTable(bitmap);
      if (!table && table.error().code() != Code::kCorrupt) {
        tracked_.clear();
        return std::unexpected(std::move(table.error()));
      }
      // It stays marked: it is going to lack our writes.
      if (!table) {
        TRY(WriteInUse(i, true));
        marked = true;
        std::lock_guard lock(mutex_);
        bitmaps_[i].info.in_use = true;
        continue;
      }
      tracked_.push_back({i, std::move(*table), DirtyPages(bitmap.granularity_bits, page_bytes())});
    }
  }
  for (const Tracked& tracked : tracked_) TRY(WriteInUse(tracked.index, true));
  if (marked || !tracked_.empty()) TRY(layer_.file_->Sync());
  if (tracked_.empty()) return {};
  tracking_.store(true, std::memory_order_release);
  return {};
}

bool Qcow2Bitmaps::Covers(Range guest) const {
  std::lock_guard lock(mutex_);
  return std::ranges::all_of(tracked_,
                             [&](const Tracked& tracked) { return tracked.pages.Covers(guest); });
}

Result<> Qcow2Bitmaps::Mark(Range guest) {
  if (!tracking() || guest.empty()) return {};
  for (Tracked& tracked : tracked_) {
    while (true) {
      std::optional<uint64_t> missing;
      {
        std::lock_guard lock(mutex_);
        missing = tracked.pages.Missing(guest);
        if (!missing) tracked.pages.Set(guest);
      }
      if (!missing) break;
      TRY(LoadPage(tracked, *missing)
              .WithPrefix(
                  fmt::format("bitmap '{}'", Printable(bitmaps_[tracked.index].info.name))));
    }
  }
  return {};
}

// Somebody else may have loaded it meanwhile, and marked: that one stays.
Result<> Qcow2Bitmaps::LoadPage(Tracked& tracked, uint64_t page) {
  {
    std::lock_guard lock(mutex_);
    if (held_ + page_bytes() > kMostHeld) {
      if (tracked.pages.Find(page) == nullptr) tracked.pages.LoadFull(page);
      return {};
    }
  }
  const uint64_t entry = tracked.table[page];
  PageBits loaded = TRY(ReadPage(bitmaps_[tracked.index], page, entry));
  if (loaded.none) loaded.bits.resize(page_bytes());
  if (entry & kBitmapAllOnes) loaded.bits.clear();
  std::lock_guard lock(mutex_);
  if (tracked.pages.Find(page) != nullptr) return {};
  held_ += loaded.bits.size();
  tracked.pages.Load(page, std::move(loaded.bits));
  return {};
}

Result<> Qcow2Bitmaps::StopTracking() {
  if (tracked_.empty()) {
    // The next write asks again which bitmaps there are to follow it.
    layer_.writing_.store(false, std::memory_order_release);
    return {};
  }
  std::vector<Range> gone;
  for (Tracked& tracked : tracked_) TRY(StoreBits(tracked, gone));
  TRY(layer_.Flush());
  for (const Tracked& tracked : tracked_) TRY(WriteTable(bitmaps_[tracked.index], tracked.table));
  TRY(layer_.file_->Sync());
  for (const Tracked& tracked : tracked_) TRY(WriteInUse(tracked.index, false));
  TRY(layer_.file_->Sync());
  layer_.writing_.store(false, std::memory_order_release);
  tracking_.store(false, std::memory_order_release);
  tracked_.clear();
  held_ = 0;
  return gone.empty() ? Result<>() : Free(gone);
}

// Bits to clusters, whose places the table in memory gets. In place, where there is one: the bitmap
// says of itself that it is not to be trusted.
Result<> Qcow2Bitmaps::StoreBits(Tracked& tracked, std::vector<Range>& gone) {
  for (const auto& [index, page] : tracked.pages.pages()) {
    if (!page.changed) continue;
    uint64_t& entry = tracked.table[index];
    const uint64_t offset = entry & kOffsetMask;
    if (page.bits.empty()) {
      if (offset != 0) gone.push_back({offset, page_bytes()});
      entry = kBitmapAllOnes;
      continue;
    }
    if (offset == 0) {
      const Clusters place = TRY(layer_.allocator_->Allocate(1));
      entry = place.first << layer_.format_.cluster_bits;
    }
    TRY_AS("bitmap", layer_.file_->Write(entry & kOffsetMask, ConstBytes(page.bits)));
  }
  tracked.pages.MarkStored();
  return {};
}

}  // namespace platter::qcow2
