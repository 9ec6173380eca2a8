// From guest bytes to extents, and the access to L2 tables that writing shares.
//
// What lies past the end of the file. A data cluster that begins there is corrupt: nobody has ever
// written it, and to answer zeros would be to invent data. One that the file holds in part reads
// as zeros where the file ends: images whose last cluster was never written to its end exist.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/endian.h"
#include "formats/qcow2/qcow2_bitmaps.h"
#include "formats/qcow2/qcow2_layer.h"
#include "io/extent_list.h"

namespace platter::qcow2 {

Qcow2Layer::Place Qcow2Layer::Locate(uint64_t guest) const {
  uint64_t cluster = guest >> format_.cluster_bits, in_table = cluster % format_.l2_entries();
  return {cluster / format_.l2_entries(), in_table / slice_entries_ * slice_bytes_,
          in_table % slice_entries_};
}

uint64_t Qcow2Layer::SliceEnd(uint64_t guest) const {
  uint64_t span = slice_entries_ << format_.cluster_bits;
  return std::min(RoundDown(guest, span) + span, info_.size);
}

L2Entry Qcow2Layer::LoadEntry(ConstBytes slice, uint64_t index) const {
  uint64_t at = index * format_.l2_entry_size();
  L2Entry entry{*LoadAt<be64>(slice, at), 0};
  if (format_.extended_l2()) entry.bitmap = *LoadAt<be64>(slice, at + 8);
  return entry;
}

uint64_t Qcow2Layer::DataEnd() const {
  return allocator_ && !data_file_ ? allocator_->file_size()
                                   : data_end_.load(std::memory_order_acquire);
}

Result<size_t> Qcow2Layer::Map(Range want, std::span<Extent> out) {
  return Named(MapAll(want, out));
}

size_t Qcow2Layer::TryMap(Range want, std::span<Extent> out) {
  if (out.empty() || !CheckInside(want).has_value()) return 0;
  // It is held for a small part of the time that going to sleep and waking up takes.
  constexpr int kTries = 100;
  std::unique_lock lock(map_mutex_, std::try_to_lock);
  for (int i = 1; !lock && i < kTries; ++i) (void)lock.try_lock();
  if (!lock) return 0;
  Stop stop;
  return MapLocked(want, out, stop);
}

Result<size_t> Qcow2Layer::MapAll(Range want, std::span<Extent> out) {
  CHECK(!out.empty());
  TRY(CheckInside(want));
  TableCache::Ref loaded;  // keeps what we waited for in memory until it was looked at
  bool asked_end = false;
  while (true) {
    sched::Yield("map");
    Stop stop;
    {
      std::lock_guard lock(map_mutex_);
      size_t count = MapLocked(want, out, stop);
      if (count > 0) return count;
    }
    if (stop.failure) {
      // Another program may have made the file longer since we looked.
      if (!stop.past_end || asked_end) return std::unexpected(std::move(*stop.failure));
      uint64_t end = TRY(data().Size());
      if (end > data_end_) data_end_ = end;
      asked_end = true;
      continue;
    }
    loaded = TRY_AS(fmt::format("L1 entry {}", stop.l1_index), l2_.Get(stop.missing));
  }
}

// As much as is in memory; on 0 `stop` says why.
size_t Qcow2Layer::MapLocked(Range want, std::span<Extent> out, Stop& stop) {
  ExtentList list(out);
  for (uint64_t at = want.offset; at < want.end();) {
    Place place = Locate(at);
    uint64_t entry = place.l1_index < l1_.size() ? l1_[place.l1_index] : 0;
    auto table = DecodeL1(format_, entry, place.l1_index);
    if (!table.has_value()) {
      stop.failure = std::move(table.error());
      break;
    }
    if (*table == 0) {
      uint64_t end = std::min((place.l1_index + 1) * format_.l2_span(), want.end());
      Extent nothing;
      nothing.guest = Range::FromTo(at, end);
      nothing.kind = absent_is_zero() ? Kind::kHole : Kind::kParent;
      if (!list.Add(nothing)) break;
      at = end;
      continue;
    }
    auto slice = l2_.TryGet(*table + place.slice);
    if (!slice) {
      stop.missing = *table + place.slice;
      stop.l1_index = place.l1_index;
      break;
    }
    Range part = Range::FromTo(at, std::min(SliceEnd(at), want.end()));
    if (!MapSlice(slice.bytes(), part, entry & kCopied, list, stop)) break;
    at = part.end();
  }
  for (Extent& extent : list.extents()) {
    if (!extent.writable) continue;
    // A hostile entry may name a table of ours: it can be read, and Reserve says what is wrong.
    if (!placed() && !metadata_.Find(extent.host).empty()) extent.writable = false;
    if (bitmaps_->tracking() && !bitmaps_->Covers(extent.guest)) extent.writable = false;
  }
  return list.size();
}

// Maps `part`, all of which is in one slice. `ours`: nobody shares the table. False: no further.
bool Qcow2Layer::MapSlice(ConstBytes slice, Range part, bool ours, ExtentList& list,
                          Stop& stop) const {
  uint64_t index = Locate(part.offset).index;
  for (uint64_t at = part.offset; at < part.end(); ++index) {
    uint64_t start = RoundDown(at, cluster_size());
    Range here = Range::FromTo(at, std::min(start + cluster_size(), part.end()));
    auto cluster = DecodeL2(format_, LoadEntry(slice, index), start);
    Result<bool> added = cluster.has_value() ? Describe(*cluster, here, ours, list)
                                             : std::unexpected(std::move(cluster.error()));
    if (!added.has_value()) {
      stop.past_end = cluster.has_value();
      stop.failure = std::move(added.error());
      return false;
    }
    if (!*added) return false;
    at = here.end();
  }
  return true;
}

// What `part` of a cluster means, into `list`; false if that is full.
Result<bool> Qcow2Layer::Describe(const Cluster& cluster, Range part, bool ours,
                                  ExtentList& list) const {
  uint64_t end = DataEnd();
  bool packed = cluster.kind == ClusterKind::kCompressedUnit;
  if ((packed || cluster.allocated != 0) && cluster.host >= end) {
    return Fail(Code::kCorrupt,
                "guest offset {:#x}: its data at {:#x} lies past the end of the file ({:#x})",
                RoundDown(part.offset, cluster_size()), cluster.host, end);
  }
  if (!packed) return DescribeRuns(cluster, part, ours, end, list);
  Range host{cluster.host, std::min(cluster.length, end - cluster.host)};
  return list.Add(PackedExtent(part, host));
}

// `part` of the one unit that `host` holds.
Extent Qcow2Layer::PackedExtent(Range part, Range host) const {
  Extent extent;
  extent.guest = part;
  extent.kind = Kind::kData;
  extent.store = file_.get();
  extent.host = host;
  extent.codec.id = format_.compression == kCompressionZstd ? Codec::kZstd : Codec::kDeflate;
  extent.codec.unit = static_cast<uint32_t>(cluster_size());
  extent.codec.skip = static_cast<uint32_t>(part.offset % cluster_size());
  return extent;
}

// A standard cluster: runs of subclusters that mean the same.
bool Qcow2Layer::DescribeRuns(const Cluster& cluster, Range part, bool ours, uint64_t data_end,
                              ExtentList& list) const {
  const uint64_t size = format_.subcluster_size(), start = RoundDown(part.offset, cluster_size());
  const bool writable = writing_ && ours && cluster.copied && !cipher_;
  const bool has_host =
      cluster.kind == ClusterKind::kNormal || cluster.kind == ClusterKind::kZeroAllocated;
  for (uint64_t at = part.offset; at < part.end();) {
    auto bit = [&](uint32_t mask) { return (mask >> ((at - start) / size) & 1) != 0; };
    Extent extent;
    extent.guest = Range::FromTo(at, std::min(RoundDown(at, size) + size, part.end()));
    uint64_t host = cluster.host + (at - start);
    extent.kind = bit(cluster.allocated) ? Kind::kData
                  : bit(cluster.zero)    ? Kind::kZero
                  : absent_is_zero()     ? Kind::kHole
                                         : Kind::kParent;
    if (extent.kind == Kind::kData && host >= data_end) {
      extent.kind = Kind::kZero;
    } else if (extent.kind == Kind::kData) {
      extent.guest.length = std::min(extent.guest.length, data_end - host);
      extent.writable = writable;
      extent.codec.cipher = cipher_.get();
    }
    if (extent.kind == Kind::kData || (extent.kind == Kind::kZero && has_host)) {
      extent.store = &data();
      extent.host = {host, extent.guest.length};
    }
    if (!list.Add(extent)) return false;
    at = extent.guest.end();
  }
  return true;
}

Result<TableCache::Ref> Qcow2Layer::OwnSlice(uint64_t guest) {
  const Place place = Locate(guest);
  TableCache::Ref loaded;
  while (true) {
    uint64_t table = 0;
    bool ours = false;
    {
      std::lock_guard lock(map_mutex_);
      CHECK(place.l1_index < l1_.size());
      uint64_t entry = l1_[place.l1_index];
      table = TRY(DecodeL1(format_, entry, place.l1_index));
      ours = table != 0 && (entry & kCopied);
      auto slice = ours ? l2_.TryGet(table + place.slice) : TableCache::Ref();
      if (slice) return slice;
    }
    if (ours) {
      loaded = TRY_AS(fmt::format("L1 entry {}", place.l1_index), l2_.Get(table + place.slice));
    } else {
      TRY(MakeOwnTable(guest));
    }
  }
}

// A new L2 table for `guest`, with what the old one says, if there is one.
Result<> Qcow2Layer::MakeOwnTable(uint64_t guest) {
  const uint64_t index = Locate(guest).l1_index;
  std::lock_guard create(create_mutex_);
  uint64_t old_table = 0;
  {
    std::lock_guard lock(map_mutex_);
    old_table = TRY(DecodeL1(format_, l1_[index], index));
    if (old_table != 0 && (l1_[index] & kCopied)) return {};  // somebody else was faster
  }
  std::vector<TableCache::Ref> old = TRY(LoadTable(index, old_table));
  uint64_t references = old_table != 0 ? TRY(allocator_->Refcount(old_table)) : 0;
  if (old_table != 0 && references == 0) {
    return Fail(Code::kCorrupt, "L1 entry {}: the refcount of its table at {:#x} is 0", index,
                old_table);
  }
  Clusters place = TRY(allocator_->Allocate(1));
  uint64_t generation = 0;
  {
    std::lock_guard lock(map_mutex_);
    InstallTable(index, place.first << format_.cluster_bits, old, references > 1);
    generation = generation_;
  }
  if (old_table != 0) allocator_->Retire({old_table, cluster_size()}, generation, false);
  return {};
}

Result<std::vector<TableCache::Ref>> Qcow2Layer::LoadTable(uint64_t l1_index, uint64_t table) {
  std::vector<TableCache::Ref> slices;
  if (table == 0) return slices;
  for (uint64_t at = 0; at < cluster_size(); at += slice_bytes_) {
    slices.push_back(TRY_AS(fmt::format("L1 entry {}", l1_index), l2_.Get(table + at)));
  }
  return slices;
}

// Under map_mutex_. `shared`: a snapshot has the old table too, and with it every cluster that it
// names, whatever the entries say.
void Qcow2Layer::InstallTable(uint64_t l1_index, uint64_t table,
                              std::span<const TableCache::Ref> old, bool shared) {
  for (uint64_t at = 0; at < cluster_size(); at += slice_bytes_) {
    TableCache::Ref slice = l2_.Fresh(table + at);
    if (old.empty()) continue;
    ConstBytes from = old[at / slice_bytes_].bytes();
    Bytes into = slice.Edit({0, slice_bytes_});
    std::ranges::copy(from, into.begin());
    for (uint64_t entry = 0; shared && entry < slice_bytes_; entry += format_.l2_entry_size()) {
      StoreAt<be64>(into, entry, *LoadAt<be64>(from, entry) & ~kCopied);
    }
  }
  l1_.Set(l1_index, table | kCopied);
}

Result<std::vector<Cluster>> Qcow2Layer::ReadClusters(const TableCache::Ref& slice, Range part) {
  std::lock_guard lock(map_mutex_);
  std::vector<Cluster> clusters;
  uint64_t index = Locate(part.offset).index;
  for (uint64_t at = RoundDown(part.offset, cluster_size()); at < part.end();
       at += cluster_size()) {
    auto cluster = DecodeL2(format_, LoadEntry(slice.bytes(), index++), at);
    if (!cluster.has_value()) {
      if (clusters.empty()) return std::unexpected(std::move(cluster.error()));
      break;
    }
    clusters.push_back(*cluster);
  }
  return clusters;
}

uint64_t Qcow2Layer::WriteEntries(TableCache::Ref& slice, std::span<const Update> updates) {
  const uint64_t size = format_.l2_entry_size();
  std::lock_guard lock(map_mutex_);
  for (const Update& update : updates) {
    Bytes into = slice.Edit({update.index * size, size});
    StoreAt<be64>(into, 0, update.entry.descriptor);
    if (format_.extended_l2()) StoreAt<be64>(into, 8, update.entry.bitmap);
  }
  return generation_;
}

Range Qcow2Layer::HostOf(const Cluster& cluster) const {
  switch (cluster.kind) {
    case ClusterKind::kCompressedUnit: return {cluster.host, cluster.length};
    case ClusterKind::kNormal:
    case ClusterKind::kZeroAllocated:
      return placed() ? Range{} : Range{cluster.host, cluster_size()};
    default: return {};
  }
}

}  // namespace platter::qcow2
