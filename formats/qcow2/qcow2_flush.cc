// Flush: the order of writes is in qcow2_layer.h.
#include <mutex>
#include <utility>

#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {

namespace {
constexpr size_t kMostDirty = 8 * kMiB;  // bytes of L2 slices

template <class Piece>
Result<> WritePieces(Store& file, std::string_view what, const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces) TRY_AS(what, file.Write(piece.offset, piece.bytes));
  return {};
}
}  // namespace

Result<> Qcow2Layer::Flush() {
  if (!changing_.load(std::memory_order_acquire)) return {};
  std::lock_guard flush(flush_mutex_);
  return Named(FlushLocked());
}

// No lock is held, but maybe ranges.
Result<> Qcow2Layer::FlushIfCrowded() {
  auto crowded = [&] { return l2_.dirty_bytes() > kMostDirty || allocator_->crowded(); };
  if (!crowded()) return {};
  std::lock_guard flush(flush_mutex_);
  // Somebody may have done it while we waited.
  return crowded() ? FlushLocked() : Result<>();
}

// Under flush_mutex_.
Result<> Qcow2Layer::FlushLocked() {
  Batch batch = TakeBatch();
  Result<> written = WriteBatch(batch);
  {
    std::lock_guard lock(map_mutex_);
    if (written.has_value()) {
      l2_.Written(batch.l2);
    } else {
      l2_.PutBack(batch.l2);
      l1_.PutBack(batch.l1);
    }
  }
  if (!written.has_value()) {
    allocator_->PutBack(batch.refcounts);
    return written;
  }
  allocator_->Written(batch.refcounts, batch.table_moved);
  durable_ = batch.generation;
  return allocator_->Settle(durable_);
}

// The tables first, then what counts their references: a cluster that they name was counted before
// it was named.
Qcow2Layer::Batch Qcow2Layer::TakeBatch() {
  Batch batch;
  {
    std::lock_guard lock(map_mutex_);
    batch.generation = ++generation_;
    batch.l2 = l2_.TakeDirty();
    batch.l1 = l1_.Take();
  }
  batch.refcounts = allocator_->Take();
  return batch;
}

Result<> Qcow2Layer::WriteBatch(Batch& batch) {
  // After the copies were taken: whatever they name is there.
  if (data_file_) TRY_AS("data file", data_file_->Sync());
  TRY(WriteRefcounts(batch));
  TRY(file_->Sync());
  if (batch.l2.empty() && batch.l1.empty()) return {};
  TRY(WritePieces(*file_, "L2 table", batch.l2));
  TRY(file_->Sync());
  if (batch.l1.empty()) return {};
  TRY(WritePieces(*file_, "L1 table", batch.l1));
  return file_->Sync();
}

// Everything is counted afterwards, as soon as a Sync follows.
Result<> Qcow2Layer::WriteRefcounts(Batch& batch) {
  const Refcounts::Batch& counts = batch.refcounts;
  TRY(WritePieces(*file_, "refcount block", counts.blocks));
  if (counts.table.empty() && !counts.moved) return {};
  TRY(file_->Sync());
  TRY(WritePieces(*file_, "refcount table", counts.table));
  if (!counts.moved) return {};
  TRY(file_->Sync());
  Header header = header_;
  header.refcount_table_offset = counts.table_offset;
  header.refcount_table_clusters = counts.table_clusters;
  TRY(WriteHeaderLocked(header));
  batch.table_moved = true;
  return {};
}

}  // namespace platter::qcow2
