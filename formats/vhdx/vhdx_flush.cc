// Flush: the order of writes is in vhdx_layer.h.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_layer.h"
#include "formats/vhdx/vhdx_slices.h"

namespace platter::vhdx {

Result<> VhdxLayer::Flush() {
  if (!writing_.load(std::memory_order_acquire)) return {};
  TRY(Named(CheckDecided()));
  std::lock_guard flush(flush_mutex_);
  return Named(FlushLocked());
}

// Whether so many more pages fit in one entry of the log. Those that a flush has taken come back
// if it fails. Under map_mutex_.
bool VhdxLayer::HasRoomLocked(uint64_t pages) const {
  return dirty_pages_.size() + pages_out_ + pages <= journal_.capacity();
}

// Flushes where they do not fit. No lock is held but ranges.
Result<> VhdxLayer::MakeRoom(uint64_t pages) {
  CHECK(pages <= journal_.capacity());
  auto has_room = [&] {
    std::lock_guard lock(map_mutex_);
    return HasRoomLocked(pages);
  };
  if (has_room()) return {};
  std::lock_guard flush(flush_mutex_);
  // Somebody may have done it while we waited.
  return has_room() ? Result<>() : FlushLocked();
}

// Copies of everything that is dirty.
VhdxLayer::Batch VhdxLayer::TakeBatch() {
  Batch batch;
  std::lock_guard lock(map_mutex_);
  batch.generation = ++generation_;
  batch.offsets = std::exchange(dirty_pages_, {});
  batch.pieces = tables_.TakeDirty();
  pages_out_ = batch.offsets.size();
  for (uint64_t offset : batch.offsets) {
    TableCache::Ref slice = tables_.TryGet(RoundDown(offset, kSliceBytes));
    CHECK(slice);
    ConstBytes page = slice.bytes().subspan(offset % kSliceBytes, kLogSector);
    batch.pages.push_back({offset, {page.begin(), page.end()}});
  }
  return batch;
}

// Under flush_mutex_. `more`: pages of other metadata, which change at the same moment.
Result<> VhdxLayer::FlushLocked(std::vector<LogPage> more) {
  const uint64_t size = space_.file_size();
  Batch batch = TakeBatch();
  Result<> written = file_->Sync();
  std::vector<LogPage> pages = std::move(batch.pages);
  for (LogPage& page : more) pages.push_back(std::move(page));
  std::ranges::sort(pages, {}, &LogPage::offset);
  if (written.has_value() && !pages.empty()) written = journal_.Commit(pages, {}, size);
  {
    std::lock_guard lock(map_mutex_);
    pages_out_ = 0;
    if (written.has_value()) {
      tables_.Written(batch.pieces);
    } else {
      tables_.PutBack(batch.pieces);
      dirty_pages_.merge(batch.offsets);
    }
  }
  TRY(std::move(written));
  durable_ = batch.generation;
  space_.Settle(durable_);
  return {};
}

}  // namespace platter::vhdx
