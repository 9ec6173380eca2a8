// Resize: the one operation here that changes the header's size and the place of the L1 table. The
// caller sees to it that nothing else uses the layer meanwhile.
//
// Growing: a longer L1 table is written to new clusters and synced, then one header write names
// table and size. Shrinking: the clusters past the new end are dropped and flushed, then the header
// says the new size; a crash in between leaves the old size with zeros (or the parent) at the end.
// What stays in the last cluster behind the new end is zeroed by cow/Disk beforehand, by a write.
#include <algorithm>

#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {

Result<> Qcow2Layer::Resize(uint64_t size, Preallocation preallocation) {
  TRY(StartWriting());
  if (size > INT64_MAX) return Fail(Code::kOutOfRange, "a disk of {} bytes is over 8 EiB", size);
  size = RoundUp(size, 512);
  if (header_.snapshot_count > 0 && header_.version < 3) {
    return Fail(Code::kUnsupported, "a version 2 image with internal snapshots cannot be resized");
  }
  if (!bitmaps_.empty())
    return Fail(Code::kUnsupported, "an image with bitmaps cannot be resized: remove them first");
  uint64_t old = info_.size;
  if (size < old) {
    TRY(Shrink(size));
  } else if (header_.l1_entries_for(size) > l1_.size()) {
    TRY(GrowL1(header_.l1_entries_for(size)));
  }
  TRY(Flush());
  if (data_store_) TRY(data_store_->Resize(size));
  Header header = header_;
  header.size = size;
  TRY(WriteHeader(header));
  header_.size = info_.size = size;
  if (size > old && preallocation != Preallocation::kOff)
    TRY(Preallocate(Range::FromTo(old, size), preallocation));
  return Flush();
}

Result<> Qcow2Layer::GrowL1(uint64_t entries) {
  uint64_t bytes = entries * 8;
  if (bytes > kMaxL1Bytes)
    return Fail(Code::kOutOfRange, "the L1 table would be over {} MiB: use larger clusters",
                kMaxL1Bytes / kMiB);
  TRY(Flush());
  uint64_t clusters = DivideUp(bytes, header_.cluster_size());
  Range host;
  while (true) {  // a run that is too short is given back, and the next one starts behind it
    host = TRY(refcounts_->Allocate(clusters)).host;
    if (host.length == clusters * header_.cluster_size()) break;
    quarantine_.push_back({host, false, pins_.Now(), generation_});
  }
  std::vector<be64> raw(clusters * header_.cluster_size() / 8);
  std::copy(l1_.begin(), l1_.end(), raw.begin());
  TRY_AS("new L1 table", store_->Write(host.offset, std::as_bytes(std::span(raw))));
  TRY(Flush());  // the new clusters' counts
  TRY(store_->Sync());
  Header header = header_;
  header.l1_offset = host.offset;
  header.l1_size = static_cast<uint32_t>(entries);
  TRY(WriteHeader(header));
  Range old{header_.l1_offset,
            RoundUp(std::max<uint64_t>(1, uint64_t{header_.l1_size} * 8), header_.cluster_size())};
  bool had_table = header_.l1_size > 0;
  header_ = header;
  l1_offset_ = host.offset;
  l1_.resize(entries);
  l1_dirty_.assign(DivideUp(bytes, 512), false);
  refcounts_->MoveFixed(old, {host.offset, bytes});
  if (had_table) quarantine_.push_back({old, false, pins_.Now(), generation_});
  return {};
}

Result<> Qcow2Layer::Shrink(uint64_t size) {
  uint64_t cluster_end = RoundUp(size, header_.cluster_size());
  if (cluster_end < info_.size) TRY(Discard(Range::FromTo(cluster_end, info_.size), Kind::kParent));
  // Tables that map nothing of the disk any more.
  {
    Lock lock(mutex_);
    for (uint64_t i = header_.l1_entries_for(size); i < header_.l1_entries_for(info_.size); ++i) {
      uint64_t table = TRY(DecodeL1(header_, l1_[i], i));
      if (table == 0) continue;
      for (uint64_t at = 0; at < header_.cluster_size(); at += slice_bytes())
        l2_.Forget(table + at);
      l1_[i] = 0;
      l1_dirty_[i * 8 / 512] = true;
      quarantine_.push_back({{table, header_.cluster_size()}, false, pins_.Now(), generation_});
    }
  }
  return {};
}

// Allocates the clusters of `added`, which read as zeros.
Result<> Qcow2Layer::Preallocate(Range added, Preallocation preallocation) {
  for (uint64_t at = added.offset; at < added.end();) {
    auto reservation = TRY(Reserve(Range::FromTo(at, added.end())));
    for (const Extent& extent : reservation->target()) {
      if (preallocation == Preallocation::kFalloc)
        (void)extent.store->Allocate(extent.host).has_value();
      TRY(extent.store->Zero(extent.host, /*may_unmap=*/preallocation == Preallocation::kMetadata));
    }
    at = reservation->range().end();
    TRY(reservation->Publish());
  }
  return {};
}

}  // namespace platter::qcow2
