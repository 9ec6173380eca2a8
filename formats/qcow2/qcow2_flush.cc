// Flush: metadata in dependency order; see the essay in qcow2_layer.h.
#include <algorithm>

#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {

struct Qcow2Layer::Taken {
  std::vector<TableCache::Piece> l2, l1;
  Refcounts::Dirty refcounts;
  uint64_t generation = 0;
};

Result<> Qcow2Layer::WritePieces(const std::vector<TableCache::Piece>& pieces) {
  for (const TableCache::Piece& piece : pieces) TRY(store_->Write(piece.offset, piece.bytes));
  return {};
}

Result<> Qcow2Layer::WriteTaken(const Taken& taken) {
  if (data_store_) TRY(data_store_->Sync());
  TRY_AS("refcount blocks", WritePieces(taken.refcounts.blocks));
  if (!taken.refcounts.table.empty()) {
    TRY(store_->Sync());  // a block must be there before the table names it
    TRY_AS("refcount table", WritePieces(taken.refcounts.table));
  }
  if (taken.l2.empty() && taken.l1.empty()) return store_->Sync();
  // Data and counts before what names them.
  TRY(EnsureFileCovers(refcounts_->allocated_end()));
  TRY(store_->Sync());
  TRY_AS("L2 tables", WritePieces(taken.l2));
  if (!taken.l1.empty()) {
    TRY(store_->Sync());
    TRY_AS("L1 table", WritePieces(taken.l1));
  }
  return store_->Sync();
}

Result<> Qcow2Layer::Flush() {
  if (!refcounts_) return {};
  std::lock_guard flush(flush_mutex_);
  Taken taken;
  bool wrote = wrote_.exchange(false);
  {
    Lock lock(mutex_);
    taken.generation = generation_++;
    taken.l2 = l2_.TakeDirty();
    for (size_t sector = 0; sector < l1_dirty_.size(); ++sector) {
      if (!l1_dirty_[sector]) continue;
      l1_dirty_[sector] = false;
      size_t first = sector * 512 / 8, count = std::min<size_t>(64, l1_.size() - first);
      TableCache::Piece piece{l1_offset_ + sector * 512, std::vector<std::byte>(count * 8), {}};
      for (size_t i = 0; i < count; ++i) StoreAt(piece.bytes, i * 8, be64(l1_[first + i]));
      taken.l1.push_back(std::move(piece));
    }
  }
  taken.refcounts = refcounts_->TakeDirty();  // after the entries, so that it counts what they name
  Result<> written = WriteTaken(taken);
  if (written) {
    l2_.Written(taken.l2);
    refcounts_->Written(taken.refcounts);
    SettleQuarantine(taken.generation);
    return {};
  }
  {
    Lock lock(mutex_);
    l2_.PutBack(taken.l2);
    for (const TableCache::Piece& piece : taken.l1)
      l1_dirty_[(piece.offset - l1_offset_) / 512] = true;
    // What was dropped before this flush was not made durable by it.
    for (Dropped& dropped : quarantine_)
      dropped.generation = std::max(dropped.generation, generation_);
  }
  refcounts_->PutBack(taken.refcounts);
  if (wrote) wrote_ = true;
  return written;
}

// Space that was dropped before flush `generation`, which is durable now, and that no reader can
// still be looking at, is free. The lowered counts are written but not synced.
void Qcow2Layer::SettleQuarantine(uint64_t generation) {
  std::vector<Dropped> free;
  {
    Lock lock(mutex_);
    auto settled =
        std::stable_partition(quarantine_.begin(), quarantine_.end(), [&](const Dropped& dropped) {
          return dropped.generation > generation || !pins_.Reached(dropped.epoch);
        });
    free.assign(settled, quarantine_.end());
    quarantine_.erase(settled, quarantine_.end());
  }
  if (free.empty()) return;
  for (const Dropped& dropped : free) {
    // A failure here leaves a leak, which check -r leaks mends; the flush itself is whole.
    if (dropped.give_back) (void)store_->Zero(dropped.host, /*may_unmap=*/true).has_value();
    (void)refcounts_->Release(dropped.host).has_value();
  }
  Refcounts::Dirty lowered = refcounts_->TakeDirty();
  Result<> written =
      lowered.table.empty() ? WritePieces(lowered.blocks) : Result<>(Fail(Code::kIo, "later"));
  if (written) {
    refcounts_->Written(lowered);
  } else {
    refcounts_->PutBack(lowered);  // the next flush tries again
  }
}

Result<> Qcow2Layer::WriteHeader(const Header& header) {
  std::vector<std::byte> bytes = TRY(BuildHeader(header));
  TRY_AS("header", store_->Write(0, ConstBytes(bytes)));
  return store_->Sync();
}

}  // namespace platter::qcow2
