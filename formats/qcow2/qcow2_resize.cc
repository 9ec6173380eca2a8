// Resize. Exclusive: cow/Disk keeps everybody else out. The step that decides is always one write
// of the header's first sector: before it the image has the old size, after it the new one. What an
// interrupted shrink leaves past the end is dropped by the next grow before it could be seen.
//
// Bitmaps follow the disk: qcow2_bitmap_resize.cc.
//
// What a longer parent holds past the old end would show in the new part. Only the chain knows how
// long the parent is; GrowOver is told by it, and writes the entries that hide that part before the
// header: nobody looks at entries past the end.
#include <algorithm>
#include <mutex>
#include <utility>

#include "formats/qcow2/qcow2_bitmaps.h"
#include "formats/qcow2/qcow2_layer.h"
#include "io/buffer.h"

namespace platter::qcow2 {

namespace {
constexpr size_t kZeroBytes = kMiB;  // written at a time by full preallocation
}

Result<> Qcow2Layer::Resize(uint64_t size, Preallocation preallocation) {
  return Named(ResizeTo(size, preallocation, {}).WithPrefix("resizing"));
}

Result<> Qcow2Layer::GrowOver(Range hidden, uint64_t size, Preallocation preallocation) {
  if (format_.version < 3 && cipher_) {
    return Fail(Code::kUnsupported, "zeros in an encrypted version 2 image");
  }
  return Named(ResizeTo(size, preallocation, hidden).WithPrefix("resizing"));
}

Result<> Qcow2Layer::ResizeTo(uint64_t size, Preallocation preallocation, Range hidden) {
  if (!info_.writable) return Fail(Code::kReadOnly, "opened for reading");
  if (!IsAligned(size, 512)) {
    return Fail(Code::kOutOfRange, "{} bytes are no multiple of 512", size);
  }
  if (format_.l1_entries_for(size) * 8 > kMaxL1Bytes) {
    return Fail(Code::kOutOfRange, "{} bytes are more than clusters of {} bytes can map", size,
                cluster_size());
  }
  if (format_.version < 3 && !snapshots_.empty()) {
    return Fail(Code::kUnsupported,
                "a version 2 image with snapshots, which have no size of theirs");
  }
  TRY(bitmaps_->CheckCanGrow(size));
  if (size < info_.size && preallocation != Preallocation::kOff) {
    return Fail(Code::kUnsupported, "preallocation when shrinking");
  }
  if (size == info_.size) return {};
  const uint64_t old_size = info_.size;
  TRY(bitmaps_->StopTracking());
  const std::vector<size_t> bitmaps = TRY(bitmaps_->MarkAllInUse());
  TRY(BeginWriting());
  TRY(Flush());
  if (size > old_size) {
    TRY(Grow(size, preallocation, hidden));
  } else {
    TRY(Shrink(size));
  }
  return bitmaps_->Resize(bitmaps, old_size);
}

Result<> Qcow2Layer::Grow(uint64_t size, Preallocation preallocation, Range hidden) {
  const uint64_t old_end = RoundUp(info_.size, cluster_size());
  TRY(ZeroTail());
  TRY(DropFrom(old_end));
  if (data_file_) {
    uint64_t there = TRY(data_file_->Size());
    if (there < size) TRY_AS("data file", data_file_->Resize(size));
    data_end_ = std::max(there, size);
  }
  if (format_.l1_entries_for(size) > l1_.size()) TRY(MoveL1(format_.l1_entries_for(size)));
  if (preallocation != Preallocation::kOff && size > old_end) {
    TRY(Preallocate(Range::FromTo(old_end, size), preallocation));
  } else if (hidden.end() > old_end) {
    TRY(HideParent(Range::FromTo(old_end, hidden.end())));
  }
  if (!hidden.empty() && format_.extended_l2()) TRY(HideSubclusters());
  TRY(Flush());
  return WriteSize(size);
}

Result<> Qcow2Layer::Shrink(uint64_t size) {
  TRY(WriteSize(size));
  TRY(DropFrom(RoundUp(size, cluster_size())));
  TRY(Flush());
  if (!format_.data_file_raw()) return {};
  TRY_AS("data file", data_file_->Resize(size));
  data_end_ = size;
  return {};
}

Result<> Qcow2Layer::WriteSize(uint64_t size) {
  {
    std::lock_guard flush(flush_mutex_);
    Header header = header_;
    header.size = size;
    TRY(WriteHeaderLocked(header));
    TRY(file_->Sync());
  }
  info_.size = size;
  return {};
}

// A longer L1 table at another place: counted, then written, then named.
Result<> Qcow2Layer::MoveL1(uint64_t entries) {
  Clusters place = TRY(allocator_->AllocateTogether(DivideUp(entries * 8, cluster_size())));
  TRY(Flush());
  const Range old{l1_.offset(), l1_.size() * 8};
  EntryTable moved = l1_;
  moved.MoveTo(place.first << format_.cluster_bits, entries);
  (void)moved.Take();
  TRY_AS("L1 table", file_->Write(moved.offset(), moved.Encode()));
  TRY(file_->Sync());
  {
    std::lock_guard flush(flush_mutex_);
    Header header = header_;
    header.l1_offset = moved.offset();
    header.l1_size = static_cast<uint32_t>(entries);
    TRY(WriteHeaderLocked(header));
    TRY(file_->Sync());
  }
  uint64_t generation = 0;
  {
    std::lock_guard lock(map_mutex_);
    l1_ = std::move(moved);
    generation = generation_;
  }
  if (!old.empty()) allocator_->Retire(old, generation, /*punch=*/false);
  return {};
}

// Nothing from guest offset `guest` (a cluster's) on is mapped any more, to the end of L1.
Result<> Qcow2Layer::DropFrom(uint64_t guest) {
  uint64_t first = DivideUp(guest, format_.l2_span());
  if (!IsAligned(guest, format_.l2_span())) {
    TRY(DropInTable(guest, first * format_.l2_span()));
  }
  for (uint64_t index = first; index < l1_.size(); ++index) {
    if (l1_[index] == 0) continue;
    TRY(DropTable(index));
    TRY(FlushIfCrowded());
  }
  return {};
}

// Shared or not: what the active L1 names counts once for the active L1.
Result<> Qcow2Layer::DropTable(uint64_t l1_index) {
  uint64_t table = TRY(DecodeL1(format_, l1_[l1_index], l1_index));
  std::vector<Range> gone;
  for (uint64_t slice = 0; slice < cluster_size() / slice_bytes_; ++slice) {
    auto ref = TRY_AS(fmt::format("L1 entry {}", l1_index), l2_.Get(table + slice * slice_bytes_));
    uint64_t guest =
        l1_index * format_.l2_span() + ((slice * slice_entries_) << format_.cluster_bits);
    Range part{guest, slice_entries_ << format_.cluster_bits};
    std::vector<Cluster> clusters = TRY(ReadClusters(ref, part));
    for (const Cluster& cluster : clusters) {
      Range host = HostOf(cluster);
      if (!host.empty()) gone.push_back(host);
    }
  }
  uint64_t generation = 0;
  {
    std::lock_guard lock(map_mutex_);
    l1_.Set(l1_index, 0);
    generation = generation_;
  }
  for (Range host : gone) allocator_->Retire(host, generation, /*punch=*/true);
  allocator_->Retire({table, cluster_size()}, generation, /*punch=*/true);
  return {};
}

// [guest, end) lies in one table.
Result<> Qcow2Layer::DropInTable(uint64_t guest, uint64_t end) {
  if (Locate(guest).l1_index >= l1_.size() || l1_[Locate(guest).l1_index] == 0) return {};
  const uint64_t span = slice_entries_ << format_.cluster_bits;
  while (guest < end) {
    Range part = Range::FromTo(guest, std::min(end, RoundDown(guest, span) + span));
    TableCache::Ref slice = TRY(OwnSlice(guest));
    std::vector<Cluster> clusters = TRY(ReadClusters(slice, part));
    std::vector<Update> updates;
    for (size_t i = 0; i < clusters.size(); ++i) {
      if (clusters[i].kind == ClusterKind::kUnallocated && clusters[i].zero == 0) continue;
      updates.push_back({Locate(guest).index + i, L2Entry{}});
    }
    uint64_t generation = WriteEntries(slice, updates);
    for (const Cluster& cluster : clusters) {
      Range host = HostOf(cluster);
      if (!host.empty()) allocator_->Retire(host, generation, /*punch=*/true);
    }
    guest = part.end();
  }
  return {};
}

// What the disk's last cluster holds past the disk's end becomes zeros: the larger disk shows it.
// (A packed unit is padded with zeros by whoever made it.)
Result<> Qcow2Layer::ZeroTail() {
  const uint64_t size = info_.size, start = RoundDown(size, cluster_size());
  if (start == size || l1_[Locate(start).l1_index] == 0) return {};
  TableCache::Ref slice = TRY(OwnSlice(start));
  Cluster last = TRY(ReadClusters(slice, {start, 1}))[0];
  if (last.kind != ClusterKind::kNormal) return {};
  TRY(CheckOld(last, KeepsHost(last)));
  if (KeepsHost(last)) return CopyTail(last.host, last.host, size - start);
  Clusters fresh = TRY(allocator_->Allocate(1));
  uint64_t host = fresh.first << format_.cluster_bits;
  TRY(CopyTail(last.host, host, size - start));
  L2Entry entry{host | kCopied, 0};
  if (format_.extended_l2()) entry.bitmap = uint64_t{last.zero} << 32 | last.allocated;
  Update update{Locate(start).index, entry};
  uint64_t generation = WriteEntries(slice, std::span(&update, 1));
  allocator_->Retire({last.host, cluster_size()}, generation, /*punch=*/false);
  return {};
}

// All clusters that `guest`, which has none, touches say zero. A version 2 image has no such entry:
// there they get clusters that hold zeros.
Result<> Qcow2Layer::HideParent(Range guest) {
  if (format_.version < 3) return Preallocate(guest, Preallocation::kMetadata);
  L2Entry zero;
  if (format_.extended_l2()) {
    zero.bitmap = ~uint64_t{0} << 32;
  } else {
    zero.descriptor = kZeroFlag;
  }
  const uint64_t span = slice_entries_ << format_.cluster_bits;
  for (uint64_t at = guest.offset; at < guest.end();) {
    TRY(FlushIfCrowded());
    TableCache::Ref slice = TRY(OwnSlice(at));
    const uint64_t end = std::min(guest.end(), RoundDown(at, span) + span);
    std::vector<Update> updates;
    for (; at < end; at += cluster_size()) updates.push_back({Locate(at).index, zero});
    (void)WriteEntries(slice, updates);
  }
  return {};
}

// Those of the disk's last cluster that lie past its end and were never written.
Result<> Qcow2Layer::HideSubclusters() {
  const uint64_t size = info_.size, start = RoundDown(size, cluster_size());
  if (start == size) return {};
  TableCache::Ref slice = TRY(OwnSlice(start));
  Cluster last = TRY(ReadClusters(slice, {start, 1}))[0];
  if (last.kind == ClusterKind::kCompressedUnit) return {};
  const uint64_t first = DivideUp(size - start, format_.subcluster_size());
  const uint32_t past = first < 32 ? ~uint32_t{0} << first : 0;
  L2Entry entry;
  {
    std::lock_guard lock(map_mutex_);
    entry = LoadEntry(slice.bytes(), Locate(start).index);
  }
  entry.bitmap |= uint64_t{past & ~last.allocated} << 32;
  Update update{Locate(start).index, entry};
  (void)WriteEntries(slice, std::span(&update, 1));
  return {};
}

// The first `keep` bytes of the host cluster at `from`, then zeros, to the one at `to`.
Result<> Qcow2Layer::CopyTail(uint64_t from, uint64_t to, uint64_t keep) {
  Buffer buffer(cluster_size());
  std::ranges::fill(buffer.bytes(), std::byte{0});
  uint64_t end = TRY(data().Size());
  uint64_t there = std::min(cluster_size(), end - std::min(end, from));
  TRY(data().Read(from, buffer.bytes().first(there)));
  // The guest address is that of the disk's last cluster.
  const uint64_t guest = RoundDown(info_.size, cluster_size());
  const bool by_host = cipher_ && cipher_->tweak() == Cipher::Tweak::kHost;
  auto sector = [&](uint64_t host) { return (by_host ? host : guest) / Cipher::kSector; };
  if (cipher_) TRY(cipher_->Decrypt(sector(from), buffer.bytes()));
  std::ranges::fill(buffer.bytes().subspan(keep), std::byte{0});
  if (cipher_) TRY(cipher_->Encrypt(sector(to), buffer.bytes()));
  return data().Write(to, std::as_const(buffer).bytes());
}

// Clusters for all of `guest`, which read as zeros: host clusters that hold zeros, so that the
// guest writes into them without a change of metadata. With a cipher they would be noise, and the
// entry says that they read as zeros.
Result<> Qcow2Layer::Preallocate(Range guest, Preallocation preallocation) {
  if (format_.version < 3 && cipher_) {
    return Fail(Code::kUnsupported, "preallocation in an encrypted version 2 image");
  }
  const uint64_t span = slice_entries_ << format_.cluster_bits;
  for (uint64_t at = guest.offset; at < guest.end();) {
    TRY(FlushIfCrowded());
    TableCache::Ref slice = TRY(OwnSlice(at));
    uint64_t end = std::min(RoundUp(guest.end(), cluster_size()), RoundDown(at, span) + span);
    Clusters run = TRY(PreallocateHost(at, (end - at) >> format_.cluster_bits, preallocation));
    std::vector<Update> updates;
    for (uint64_t i = 0; i < run.count; ++i, at += cluster_size()) {
      L2Entry entry{(run.first + i) << format_.cluster_bits | kCopied, 0};
      if (format_.extended_l2()) {
        entry.bitmap = cipher_ ? ~uint64_t{0} << 32 : ~uint32_t{0};
      } else if (cipher_) {
        entry.descriptor |= kZeroFlag;
      }
      updates.push_back({Locate(at).index, entry});
    }
    (void)WriteEntries(slice, updates);
  }
  return {};
}

Result<Clusters> Qcow2Layer::PreallocateHost(uint64_t guest, uint64_t count,
                                             Preallocation preallocation) {
  Clusters run{guest >> format_.cluster_bits, count};
  if (!placed()) run = TRY(allocator_->Allocate(count));
  Range host{run.first << format_.cluster_bits, run.count << format_.cluster_bits};
  if (placed()) host = host.Intersect({0, data_end_});
  if (preallocation == Preallocation::kFalloc && cipher_) {
    TRY(data().Allocate(host));
  } else if (preallocation == Preallocation::kFull) {
    std::vector<std::byte> zeros(std::min<uint64_t>(kZeroBytes, host.length));
    for (uint64_t at = host.offset; at < host.end(); at += zeros.size()) {
      uint64_t length = std::min<uint64_t>(zeros.size(), host.end() - at);
      TRY(data().Write(at, ConstBytes(zeros).first(length)));
    }
  } else if (!cipher_) {
    TRY(data().Zero(host, /*may_unmap=*/preallocation == Preallocation::kMetadata));
  }
  return run;
}

}  // namespace platter::qcow2
