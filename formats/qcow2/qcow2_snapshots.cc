#include "formats/qcow2/qcow2_snapshots.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <mutex>
#include <utility>

#include "formats/qcow2/qcow2_bitmaps.h"

namespace platter::qcow2 {

namespace {

constexpr size_t kMostName = 65535;  // bytes; the field has 16 bits

// The table with everything in it written.
EntryTable WithoutCopied(EntryTable l1) {
  for (uint64_t i = 0; i < l1.size(); ++i) l1.Set(i, l1[i] & ~kCopied);
  return l1;
}

uint64_t NumberOf(const std::string& id) {
  uint64_t number = 0;
  (void)std::from_chars(id.data(), id.data() + id.size(), number);
  return number;
}

}  // namespace

Result<> Qcow2Snapshots::CreateSnapshot(const std::string& name) {
  return layer_.Named(
      Create(name).WithPrefix(fmt::format("creating snapshot '{}'", Printable(name))));
}
Result<> Qcow2Snapshots::ApplySnapshot(const std::string& wanted) {
  return layer_.Named(
      Apply(wanted).WithPrefix(fmt::format("applying snapshot '{}'", Printable(wanted))));
}
Result<> Qcow2Snapshots::DeleteSnapshot(const std::string& wanted) {
  return layer_.Named(
      Delete(wanted).WithPrefix(fmt::format("deleting snapshot '{}'", Printable(wanted))));
}

// ---- The three operations ----

Result<> Qcow2Snapshots::Create(const std::string& name) {
  Snapshot snapshot = TRY(Describe(name));
  TRY(layer_.BeginChange());
  TRY(Begin());
  TRY(ShareTree(layer_.l1_));
  TRY(DisownTables());
  EntryTable copy = TRY(PlaceL1(layer_.l1_, layer_.l1_.size()));
  snapshot.l1_offset = copy.offset();
  snapshot.l1_size = static_cast<uint32_t>(copy.size());

  std::vector<Snapshot> snapshots = layer_.snapshots_;
  snapshots.push_back(std::move(snapshot));
  Header header = layer_.header_;
  const Range old_table = TableRange();
  TRY(PlaceTable(snapshots, header));
  // Counts and flags are right by now.
  header.incompatible &= ~kDirty;
  TRY(SwitchTo(header));
  Adopt(std::move(snapshots));
  Retire(old_table);
  return {};
}

Result<> Qcow2Snapshots::Apply(const std::string& wanted) {
  const Snapshot& snapshot =
      layer_.snapshots_[TRY(Find(wanted, {&SnapshotInfo::id, &SnapshotInfo::name}))];
  if (!layer_.bitmaps_->list().empty() && snapshot.info.disk_size != layer_.info_.size) {
    return Fail(Code::kUnsupported,
                "it has {} bytes, the disk {}, and the image has bitmaps: "
                "remove them first",
                snapshot.info.disk_size, layer_.info_.size);
  }
  TRY(layer_.BeginWriting());
  // All of the disk may read otherwise from then on.
  TRY(layer_.bitmaps_->Mark({0, layer_.info_.size}));
  TRY(Begin());
  const EntryTable theirs = TRY(LoadL1(snapshot));
  TRY(ShareTree(theirs));
  EntryTable fresh = TRY(PlaceL1(theirs, format_.l1_entries_for(snapshot.info.disk_size)));
  Header header = layer_.header_;
  header.l1_offset = fresh.offset();
  header.l1_size = static_cast<uint32_t>(fresh.size());
  header.size = snapshot.info.disk_size;
  TRY(SwitchTo(header));

  EntryTable old = std::exchange(layer_.l1_, std::move(fresh));
  layer_.info_.size = header.size;
  TRY(ReleaseTree(old));
  Retire({old.offset(), old.size() * 8});
  return End();
}

Result<> Qcow2Snapshots::Delete(const std::string& wanted) {
  const size_t index = TRY(Find(wanted, {&SnapshotInfo::name, &SnapshotInfo::id}));
  TRY(layer_.BeginChange());
  TRY(Begin());
  const EntryTable theirs = TRY(LoadL1(layer_.snapshots_[index]));
  std::vector<Snapshot> snapshots = layer_.snapshots_;
  snapshots.erase(snapshots.begin() + static_cast<ptrdiff_t>(index));
  Header header = layer_.header_;
  const Range old_table = TableRange();
  TRY(PlaceTable(snapshots, header));
  TRY(SwitchTo(header));
  Adopt(std::move(snapshots));
  Retire(old_table);
  TRY(ReleaseTree(theirs));
  Retire({theirs.offset(), theirs.size() * 8});
  return End();
}

// ---- Their parts ----

// Nothing is dirty or retired afterwards, and the image says that it is being changed.
Result<> Qcow2Snapshots::Begin() {
  if (format_.has_data_file()) {
    return Fail(Code::kUnsupported, "images with an external data file have no snapshots");
  }
  TRY(layer_.Flush());
  return SetDirty(true);
}

// What was released is free after the first flush; what counts it is written by the second. Then
// what has become the disk's alone may be written in place again.
Result<> Qcow2Snapshots::End() {
  TRY(layer_.Flush());
  TRY(layer_.Flush());
  TRY(OwnTables());
  TRY(layer_.Flush());
  return SetDirty(false);
}

Result<> Qcow2Snapshots::SetDirty(bool dirty) {
  if (format_.version < 3) return {};
  std::lock_guard flush(layer_.flush_mutex_);
  Header header = layer_.header_;
  header.incompatible = dirty ? header.incompatible | kDirty : header.incompatible & ~kDirty;
  TRY(layer_.WriteHeaderLocked(header));
  return layer_.file_->Sync();
}

Result<size_t> Qcow2Snapshots::Find(const std::string& wanted, Fields fields) const {
  const std::vector<Snapshot>& all = layer_.snapshots_;
  for (auto field : fields) {
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i].info.*field == wanted) return i;
    }
  }
  return Fail(Code::kOutOfRange, "there is no such snapshot");
}

Result<Snapshot> Qcow2Snapshots::Describe(const std::string& name) const {
  if (name.empty() || name.size() > kMostName) {
    return Fail(Code::kOutOfRange, "a name has 1 to {} bytes", kMostName);
  }
  if (layer_.snapshots_.size() >= kMaxSnapshots) {
    return Fail(Code::kNoSpace, "an image has at most {} snapshots", kMaxSnapshots);
  }
  if (format_.refcount_max() < 2) {
    return Fail(Code::kUnsupported, "refcounts of 1 bit cannot count a shared cluster");
  }
  uint64_t last = 0;
  for (const Snapshot& other : layer_.snapshots_) {
    if (other.info.name == name) return Fail(Code::kRefused, "there is one of this name");
    last = std::max(last, NumberOf(other.info.id));
  }
  Snapshot snapshot;
  snapshot.info.id = std::to_string(last + 1);
  snapshot.info.name = name;
  snapshot.info.disk_size = layer_.info_.size;
  auto now = std::chrono::system_clock::now().time_since_epoch();
  auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now);
  snapshot.info.date_seconds = static_cast<uint64_t>(seconds.count());
  snapshot.info.date_nanoseconds =
      static_cast<uint32_t>(std::chrono::nanoseconds(now - seconds).count());
  if (format_.version >= 3) snapshot.extra = SnapshotExtra(layer_.info_.size);
  return snapshot;
}

Result<> Qcow2Snapshots::ForEachTable(const EntryTable& l1, const Visit& visit) {
  for (uint64_t index = 0; index < l1.size(); ++index) {
    uint64_t table = TRY(DecodeL1(format_, l1[index], index));
    if (table == 0) continue;
    TRY_AS(fmt::format("L1 entry {}", index), visit(index, table));
    TRY(layer_.FlushIfCrowded());
  }
  return {};
}

Result<std::vector<Range>> Qcow2Snapshots::Named(uint64_t l1_index, uint64_t table) {
  std::vector<Range> hosts;
  const uint64_t part = layer_.slice_entries_ << format_.cluster_bits;
  for (uint64_t slice = 0; slice * layer_.slice_bytes_ < layer_.cluster_size(); ++slice) {
    auto ref = TRY(layer_.l2_.Get(table + slice * layer_.slice_bytes_));
    uint64_t guest = l1_index * format_.l2_span() + slice * part;
    std::vector<Cluster> clusters = TRY(layer_.ReadClusters(ref, {guest, part}));
    if (clusters.size() < layer_.slice_entries_) {
      return Fail(Code::kCorrupt, "entry {} of the L2 table at {:#x} is wrong",
                  slice * layer_.slice_entries_ + clusters.size(), table);
    }
    for (const Cluster& cluster : clusters) {
      Range host = layer_.HostOf(cluster);
      if (host.empty()) continue;
      // Packed units share clusters, and each counts.
      bool joins = !hosts.empty() && hosts.back().end() == host.offset &&
                   IsAligned(host.offset, layer_.cluster_size());
      if (joins) {
        hosts.back().length += host.length;
      } else {
        hosts.push_back(host);
      }
    }
  }
  return hosts;
}

Result<> Qcow2Snapshots::ShareTree(const EntryTable& l1) {
  return ForEachTable(l1, [&](uint64_t index, uint64_t table) -> Result<> {
    for (Range host : TRY(Named(index, table))) TRY(layer_.allocator_->Share(host));
    return layer_.allocator_->Share({table, layer_.cluster_size()});
  });
}

Result<> Qcow2Snapshots::ReleaseTree(const EntryTable& l1) {
  return ForEachTable(l1, [&](uint64_t index, uint64_t table) -> Result<> {
    for (Range host : TRY(Named(index, table))) {
      layer_.allocator_->Retire(host, layer_.generation_, /*punch=*/true);
    }
    layer_.allocator_->Retire({table, layer_.cluster_size()}, layer_.generation_, /*punch=*/true);
    return {};
  });
}

Result<> Qcow2Snapshots::DisownTables() {
  return ForEachTable(layer_.l1_, [&](uint64_t index, uint64_t table) -> Result<> {
    for (uint64_t at = 0; at < layer_.cluster_size(); at += layer_.slice_bytes_) {
      auto slice = TRY(layer_.l2_.Get(table + at));
      std::lock_guard lock(layer_.map_mutex_);
      for (uint64_t entry = 0; entry < layer_.slice_bytes_; entry += format_.l2_entry_size()) {
        uint64_t descriptor = *LoadAt<be64>(slice.bytes(), entry);
        // Bit 63 of a packed unit's descriptor is no part of its place: it has none to copy.
        if (!(descriptor & kCopied)) continue;
        StoreAt<be64>(slice.Edit({entry, 8}), 0, descriptor & ~kCopied);
      }
    }
    std::lock_guard lock(layer_.map_mutex_);
    layer_.l1_.Set(index, table);
    return {};
  });
}

Result<> Qcow2Snapshots::OwnTables() {
  return ForEachTable(layer_.l1_, [&](uint64_t index, uint64_t table) -> Result<> {
    bool ours = TRY(layer_.allocator_->Refcount(table)) == 1;
    if (ours) TRY(OwnEntries(index, table));
    std::lock_guard lock(layer_.map_mutex_);
    layer_.l1_.Set(index, table | (ours ? kCopied : 0));
    return {};
  });
}

Result<> Qcow2Snapshots::OwnEntries(uint64_t l1_index, uint64_t table) {
  const uint64_t part = layer_.slice_entries_ << format_.cluster_bits;
  for (uint64_t slice = 0; slice * layer_.slice_bytes_ < layer_.cluster_size(); ++slice) {
    auto ref = TRY(layer_.l2_.Get(table + slice * layer_.slice_bytes_));
    uint64_t guest = l1_index * format_.l2_span() + slice * part;
    std::vector<Cluster> clusters = TRY(layer_.ReadClusters(ref, {guest, part}));
    for (size_t i = 0; i < clusters.size(); ++i) {
      if (clusters[i].kind == ClusterKind::kCompressedUnit) continue;
      if (clusters[i].copied || layer_.HostOf(clusters[i]).empty()) continue;
      if (TRY(layer_.allocator_->Refcount(clusters[i].host)) != 1) continue;
      const uint64_t at = i * format_.l2_entry_size();
      std::lock_guard lock(layer_.map_mutex_);
      uint64_t descriptor = *LoadAt<be64>(ref.bytes(), at);
      StoreAt<be64>(ref.Edit({at, 8}), 0, descriptor | kCopied);
    }
  }
  return {};
}

Result<EntryTable> Qcow2Snapshots::LoadL1(const Snapshot& snapshot) const {
  EntryTable l1;
  TRY(l1.Load(*layer_.file_, "the snapshot's L1 table", snapshot.l1_offset, snapshot.l1_size));
  return l1;
}

Result<EntryTable> Qcow2Snapshots::PlaceL1(const EntryTable& l1, uint64_t entries) {
  EntryTable copy = WithoutCopied(l1);
  entries = std::max(entries, copy.size());
  if (entries == 0) return copy;
  uint64_t clusters = DivideUp(entries * 8, layer_.cluster_size());
  Clusters place = TRY(layer_.allocator_->AllocateTogether(clusters));
  copy.MoveTo(place.first << format_.cluster_bits, entries);
  (void)copy.Take();
  TRY_AS("L1 table", layer_.file_->Write(copy.offset(), copy.Encode()));
  return copy;
}

Result<> Qcow2Snapshots::PlaceTable(const std::vector<Snapshot>& snapshots, Header& header) {
  std::vector<std::byte> table = BuildSnapshots(snapshots);
  if (table.size() > kMaxSnapshotTableBytes) {
    return Fail(Code::kNoSpace, "the snapshot table would be larger than {} bytes",
                kMaxSnapshotTableBytes);
  }
  header.snapshot_count = static_cast<uint32_t>(snapshots.size());
  header.snapshots_offset = 0;
  if (table.empty()) return {};
  uint64_t clusters = DivideUp(table.size(), layer_.cluster_size());
  Clusters place = TRY(layer_.allocator_->AllocateTogether(clusters));
  header.snapshots_offset = place.first << format_.cluster_bits;
  return layer_.file_->Write(header.snapshots_offset, ConstBytes(table))
      .WithPrefix("snapshot table");
}

// The moment at which it happens. `header` may be older than a move of the refcount table, which
// the flush before it makes.
Result<> Qcow2Snapshots::SwitchTo(const Header& header) {
  TRY(layer_.Flush());
  std::lock_guard flush(layer_.flush_mutex_);
  Header now = layer_.header_;
  now.l1_offset = header.l1_offset;
  now.l1_size = header.l1_size;
  now.size = header.size;
  now.snapshot_count = header.snapshot_count;
  now.snapshots_offset = header.snapshots_offset;
  now.incompatible = header.incompatible;
  TRY(layer_.WriteHeaderLocked(now));
  return layer_.file_->Sync();
}

void Qcow2Snapshots::Adopt(std::vector<Snapshot> snapshots) {
  layer_.info_.snapshots.clear();
  for (const Snapshot& snapshot : snapshots) layer_.info_.snapshots.push_back(snapshot.info);
  layer_.snapshots_ = std::move(snapshots);
}

// As it is named by the header now, in bytes.
Range Qcow2Snapshots::TableRange() const {
  return {layer_.header_.snapshots_offset, BuildSnapshots(layer_.snapshots_).size()};
}

void Qcow2Snapshots::Retire(Range table) {
  if (!table.empty()) layer_.allocator_->Retire(table, layer_.generation_, /*punch=*/false);
}

}  // namespace platter::qcow2
