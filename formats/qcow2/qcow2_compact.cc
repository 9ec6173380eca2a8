// Nothing is ever in one place only. A cluster is copied, then everything that names it is changed
// to name the copy, one entry after the other; both hold the same all the while, and both are
// counted. So an entry that still names the old place, or already the new one, is right either way.
//
// What is named by tables that move themselves has its turn before those tables:
//
//   1  new refcount structures behind the end of the file: as before, and every copy's place has
//      the count of what is going to move there. The header names them. The old structures are
//      holes
//   2  data and bits of bitmaps are copied; Sync; L2 and bitmap tables name the copies; Sync
//   3  L2 and bitmap tables are copied; Sync; L1 tables and the bitmap directory name the copies;
//   Sync 4  L1 tables, the bitmap directory and the LUKS header are copied; Sync; the snapshot
//   table names
//      the L1 tables of snapshots; Sync
//   5  the snapshot table is copied; Sync; the header names all that has moved; Sync
//   6  the last refcount structures, behind the last cluster in use, without the old places; the
//      header names them; Sync; the file is cut
//
// A crash leaves leaks: counted places that nothing names yet, or any more.
//
// Compressed units lie across the borders of clusters; clusters that share one stay together, as
// those of a table do. Where such a run finds no hole that is large enough, the image ends there.
#include "formats/qcow2/qcow2_compact.h"

#include <algorithm>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "formats/qcow2/qcow2_check.h"
#include "formats/qcow2/qcow2_check_compare.h"
#include "formats/qcow2/qcow2_check_survey.h"
#include "formats/qcow2/qcow2_check_tables.h"
#include "formats/qcow2/qcow2_crypto.h"
#include "formats/qcow2/qcow2_header_io.h"
#include "formats/qcow2/qcow2_refcount_build.h"

namespace platter::qcow2::check {
namespace {

class Compactor {
 public:
  Compactor(Image image, const OpenOptions& open)
      : image_(std::move(image)), header_(image_.header), open_(open) {}

  Result<CompactReport> Run() {
    CompactReport report{.size_before = image_.size, .size_after = image_.size};
    SurveyMetadata(image_, s_);
    CountTables(image_, s_);
    end_ = image_.Cluster(CompareRefcounts(image_, s_));
    if (s_.refs.overflowed() || s_.incomplete) {
      return Fail(Code::kUnsupported, "too many clusters far from each other to count them all");
    }
    FindOldStructures();
    TRY(FindRuns());
    if (header_.crypto) cipher_ = TRY(OpenCipher(header_, image_.store, open_.secret));
    PlanMoves();
    if (!moves_.empty()) {
      const NewRefcounts last =
          TRY(PlanRefcounts(header_, header_.refcount_order, NewEnd(), IndicesBelow(NewEnd())));
      if (last.end() < end_) {
        TRY(Move(last));
        report.moved = moves_.size() << header_.cluster_bits;
        end_ = last.end();
      }
    }
    return Cut(report);
  }

 private:
  // ---- The plan ----

  void FindOldStructures() {
    for (uint64_t value : s_.blocks) {
      if (IsBlock(value)) structures_.insert(image_.Cluster(value));
    }
    for (uint64_t i = 0; i < header_.refcount_table_clusters; ++i) {
      structures_.insert(image_.Cluster(header_.refcount_table_offset) + i);
    }
  }

  // Clusters that stay together: of tables, and of packed units.
  Result<> FindRuns() {
    for (const Region& region : s_.regions) {
      const Range whole = region.range.Outward(image_.cluster_size());
      for (uint64_t at = whole.offset; at < whole.end(); at += image_.cluster_size()) {
        tables_.insert(image_.Cluster(at));
        if (at + image_.cluster_size() < whole.end()) linked_.insert(image_.Cluster(at));
      }
    }
    return ForEachL2([&](const TableRef& table, Bytes bytes) -> Result<bool> {
      for (uint64_t i = 0; i < header_.l2_entries(); ++i) {
        auto cluster = TRY(Decode(table, bytes, i));
        if (cluster.kind != ClusterKind::kCompressedUnit) continue;
        const uint64_t last = image_.Cluster(cluster.host + cluster.length - 1);
        for (uint64_t at = image_.Cluster(cluster.host); at < last; ++at) linked_.insert(at);
      }
      return false;
    });
  }

  Result<Cluster> Decode(const TableRef& table, ConstBytes bytes, uint64_t index) const {
    const L2Entry entry = LoadL2(header_, bytes, index);
    if (entry.descriptor == 0 && entry.bitmap == 0) return Cluster{};
    return DecodeL2(header_, entry, GuestOffset(header_, table, index));
  }

  // `visit` gets each L2 table's bytes, and says whether it has changed them.
  template <class Visit>
  Result<> ForEachL2(Visit visit) {
    std::vector<std::byte> bytes(image_.cluster_size());
    Holes holes(image_);
    for (const TableRef& table : s_.tables) {
      if (holes.Covers({table.offset, image_.cluster_size()})) continue;
      TRY(image_.Read(table.offset, bytes));
      if (!TRY(visit(table, Bytes(bytes)))) continue;
      TRY_AS("L2 table", image_.store.Write(table.offset, ConstBytes(bytes)));
    }
    return {};
  }

  bool IsFree(uint64_t cluster) const {
    return (s_.refs.Count(cluster) == 0 || structures_.contains(cluster)) &&
           !taken_.contains(cluster);
  }

  // First and number of the clusters that stay together with `cluster`.
  Clusters RunOf(uint64_t cluster) const {
    Clusters run{cluster, cluster + 1};
    while (run.first > 0 && linked_.contains(run.first - 1)) --run.first;
    while (linked_.contains(run.end - 1)) ++run.end;
    return run;
  }

  // From the end of the file down, each into the first hole before it; until one finds none.
  void PlanMoves() {
    const std::vector<RefMap::Slot*> slots = s_.refs.Sorted();
    for (size_t i = slots.size(); i-- > 0;) {
      for (uint64_t bit = RefMap::kPageClusters; bit-- > 0;) {
        const uint64_t cluster = slots[i]->first * RefMap::kPageClusters + bit;
        if (s_.refs.Count(cluster) == 0 || structures_.contains(cluster)) continue;
        if (moves_.contains(cluster)) continue;  // with its run
        const Clusters run = RunOf(cluster);
        const auto hole = FindHole(run);
        if (!hole) {
          kept_ = cluster + 1;
          return;
        }
        for (uint64_t at = run.first; at < run.end; ++at) {
          moves_[at] = *hole + (at - run.first);
          taken_.insert(*hole + (at - run.first));
        }
      }
    }
  }

  std::optional<uint64_t> FindHole(Clusters run) {
    const uint64_t count = run.end - run.first;
    uint64_t& from = count == 1 ? hole_ : run_hole_;
    for (uint64_t at = from; at + count <= run.first; ++at) {
      if (!IsFree(at)) continue;
      uint64_t end = at + 1;
      while (end < at + count && IsFree(end)) ++end;
      if (end == at + count) {
        from = end;
        return at;
      }
      at = end;
    }
    return std::nullopt;
  }

  // Clusters: behind the last one in use when all has moved.
  uint64_t NewEnd() const {
    uint64_t end = kept_;
    for (const auto& [from, to] : moves_) end = std::max(end, to + 1);
    return end;
  }

  std::set<uint64_t> IndicesBelow(uint64_t end) const {
    std::set<uint64_t> indices;
    for (uint64_t at = 0; at < end; at += header_.refcounts_per_block()) {
      indices.insert(at / header_.refcounts_per_block());
    }
    return indices;
  }

  // ---- Its execution ----

  Result<> Move(const NewRefcounts& last) {
    std::unordered_map<uint64_t, uint64_t> sources;
    for (const auto& [from, to] : moves_) sources[to] = from;
    auto count = [&](uint64_t cluster, bool old_places) -> Result<uint64_t> {
      if (auto source = sources.find(cluster); source != sources.end()) {
        return s_.refs.Count(source->second);
      }
      if (structures_.contains(cluster) || (!old_places && moves_.contains(cluster))) return 0;
      return s_.refs.Count(cluster);
    };
    // A packed unit may end in the cluster after the last one.
    const uint64_t behind = std::max(image_.clusters(), end_);
    const NewRefcounts first =
        TRY(PlanRefcounts(header_, header_.refcount_order, behind, IndicesBelow(behind)));
    TRY(Recount(first, [&](uint64_t cluster) { return count(cluster, true); }));
    TRY(CopyWhere(
        [&](uint64_t cluster) { return !IsTable(cluster) && !tables_.contains(cluster); }));
    TRY(RenameData());
    TRY(CopyWhere([&](uint64_t cluster) { return IsTable(cluster); }, Region::kBitmapTable));
    TRY(RenameTables());
    TRY(CopyRegions(
        {Region::kActiveL1, Region::kSnapshotL1, Region::kBitmapDirectory, Region::kLuksHeader}));
    TRY(RenameSnapshotTables());
    TRY(CopyRegions({Region::kSnapshotTable}));
    TRY(RenameInHeader());
    return Recount(last, [&](uint64_t cluster) { return count(cluster, false); });
  }

  template <class Count>
  Result<> Recount(const NewRefcounts& place, Count count) {
    TRY_AS("new refcount structures",
           WriteNewRefcounts(image_.store, header_, header_.refcount_order, place, count));
    header_.refcount_table_offset = image_.Offset(place.table);
    header_.refcount_table_clusters = static_cast<uint32_t>(place.table_clusters);
    return SwitchHeader();
  }

  Result<> SwitchHeader() {
    header_.autoclear &= kKnownAutoclear;
    TRY(PutHeader(image_.store, header_));
    return image_.store.Sync();
  }

  // An L2 table.
  bool IsTable(uint64_t cluster) const {
    const RefMap::Page* page = s_.refs.Find(cluster);
    return page != nullptr && (page->table & RefMap::Bit(cluster));
  }
  bool IsData(uint64_t cluster) const {
    const RefMap::Page* page = s_.refs.Find(cluster);
    return page != nullptr && (page->data & RefMap::Bit(cluster));
  }

  uint64_t NewPlace(uint64_t offset) const {
    auto move = moves_.find(image_.Cluster(offset));
    if (move == moves_.end()) return offset;
    return image_.Offset(move->second) + offset % image_.cluster_size();
  }

  Result<> CopyOne(uint64_t from, uint64_t to) {
    std::vector<std::byte>& bytes = buffer_;
    bytes.resize(image_.cluster_size());
    TRY(image_.Read(image_.Offset(from), bytes));
    // What the cipher makes of bytes depends on where they are.
    if (cipher_ && cipher_->tweak() == Cipher::Tweak::kHost && IsData(from)) {
      TRY(cipher_->Decrypt(image_.Offset(from) / Cipher::kSector, Bytes(bytes)));
      TRY(cipher_->Encrypt(image_.Offset(to) / Cipher::kSector, Bytes(bytes)));
    }
    return image_.store.Write(image_.Offset(to), ConstBytes(bytes)).WithPrefix("moving a cluster");
  }

  template <class Which>
  Result<> CopyWhere(Which which, std::optional<Region::Part> part = std::nullopt) {
    std::vector<std::pair<uint64_t, uint64_t>> order(moves_.begin(), moves_.end());
    std::ranges::sort(order);
    for (const auto& [from, to] : order) {
      if (which(from)) TRY(CopyOne(from, to));
    }
    return part ? CopyRegions({*part}) : image_.store.Sync();
  }

  Result<> CopyRegions(std::initializer_list<Region::Part> parts) {
    for (const Region& region : s_.regions) {
      if (std::ranges::find(parts, region.part) == parts.end()) continue;
      const Range whole = region.range.Outward(image_.cluster_size());
      for (uint64_t at = whole.offset; at < whole.end(); at += image_.cluster_size()) {
        if (NewPlace(at) != at) TRY(CopyOne(image_.Cluster(at), image_.Cluster(NewPlace(at))));
      }
    }
    return image_.store.Sync();
  }

  Result<> RenameData() {
    TRY(ForEachL2([&](const TableRef& table, Bytes bytes) -> Result<bool> {
      bool changed = false;
      for (uint64_t i = 0; i < header_.l2_entries(); ++i) {
        const auto cluster = TRY(Decode(table, bytes, i));
        const bool packed = cluster.kind == ClusterKind::kCompressedUnit;
        if (header_.has_data_file() || cluster.host == 0) continue;
        const uint64_t place = NewPlace(cluster.host);
        if (place == cluster.host) continue;
        const uint64_t descriptor = LoadL2(header_, bytes, i).descriptor;
        const uint64_t mask = packed ? (CompressedHostLimit(header_) - 1) : kOffsetMask;
        StoreAt(bytes, i * header_.l2_entry_size(), be64((descriptor & ~mask) | place));
        changed = true;
      }
      return changed;
    }));
    TRY(RenameEntries(Region::kBitmapTable));
    return image_.store.Sync();
  }

  // In tables of plain entries.
  Result<> RenameEntries(Region::Part part) {
    std::vector<std::pair<uint64_t, uint64_t>> changes;
    TRY(VisitEntries(image_, s_, part, [&](const TableEntry& entry) {
      const uint64_t offset = entry.value & kOffsetMask, place = NewPlace(offset);
      if (offset == 0 || place == offset) return;
      changes.emplace_back(entry.at, (entry.value & ~kOffsetMask) | place);
    }));
    for (const auto& [at, value] : changes) TRY(image_.store.Write(at, AsBytes(be64(value))));
    return {};
  }

  Result<> RenameTables() {
    TRY(RenameEntries(Region::kActiveL1));
    TRY(RenameEntries(Region::kSnapshotL1));
    if (header_.bitmaps) {
      std::vector<std::byte> directory(header_.bitmaps->directory_size);
      TRY(image_.Read(header_.bitmaps->directory_offset, directory));
      const std::vector<Bitmap> bitmaps = TRY(ParseBitmaps(header_, directory));
      for (const Bitmap& bitmap : bitmaps) {
        const uint64_t place = NewPlace(bitmap.table_offset);
        if (place == bitmap.table_offset || bitmap.table_size == 0) continue;
        TRY(image_.store.Write(
            header_.bitmaps->directory_offset + bitmap.at + offsetof(DiskBitmapEntry, table_offset),
            AsBytes(be64(place))));
      }
    }
    return image_.store.Sync();
  }

  Result<> RenameSnapshotTables() {
    uint64_t at = header_.snapshots_offset;
    for (uint32_t i = 0; i < header_.snapshot_count; ++i) {
      std::vector<std::byte> fixed(sizeof(DiskSnapshot));
      TRY(image_.Read(at, fixed));
      const DiskSnapshot disk = *LoadAt<DiskSnapshot>(fixed, 0);
      const uint64_t place = NewPlace(disk.l1_table_offset);
      if (place != disk.l1_table_offset && disk.l1_size > 0) {
        TRY(image_.store.Write(at + offsetof(DiskSnapshot, l1_table_offset), AsBytes(be64(place))));
      }
      at += RoundUp(sizeof disk + disk.extra_size + disk.id_length + disk.name_length, 8);
    }
    return image_.store.Sync();
  }

  Result<> RenameInHeader() {
    header_.l1_offset = NewPlace(header_.l1_offset);
    if (header_.snapshot_count > 0) header_.snapshots_offset = NewPlace(header_.snapshots_offset);
    if (header_.bitmaps) {
      header_.bitmaps->directory_offset = NewPlace(header_.bitmaps->directory_offset);
    }
    if (header_.crypto) header_.crypto->offset = NewPlace(header_.crypto->offset);
    return SwitchHeader();
  }

  Result<CompactReport> Cut(CompactReport report) {
    const uint64_t size = TRY(image_.store.Size()), end = image_.Offset(end_);
    if (!image_.store.caps().block_device && end < size) {
      TRY(image_.store.Resize(end));
      TRY(image_.store.Sync());
    }
    report.size_after = std::min(size, end);
    return report;
  }

  const Image image_;
  Header header_;  // as it is on disk
  const OpenOptions& open_;
  Survey s_;
  std::unique_ptr<Cipher> cipher_;
  uint64_t end_ = 0;                         // clusters: of the image
  std::unordered_set<uint64_t> structures_;  // the old refcount structures
  std::unordered_set<uint64_t> tables_;      // clusters of regions
  std::unordered_set<uint64_t> linked_;      // stays together with the one behind it
  std::unordered_map<uint64_t, uint64_t> moves_;
  std::unordered_set<uint64_t> taken_;  // where they go
  uint64_t kept_ = 1, hole_ = 1, run_hole_ = 1;
  std::vector<std::byte> buffer_;
};

}  // namespace
}  // namespace platter::qcow2::check

namespace platter::qcow2 {

Result<CompactReport> CompactQcow2(Store& store, const OpenOptions& open) {
  if (!store.writable()) return Fail(Code::kReadOnly, "opened for reading only");
  auto check = [&](CheckOptions::Repair repair, const char* when) -> Result<> {
    const CheckReport found = TRY(CheckQcow2(store, open, {.repair = repair}));
    if (found.corruptions + found.errors == 0) return {};
    const auto serious = std::ranges::find_if(found.findings, [](const auto& finding) {
      return finding.kind != CheckReport::Finding::kLeak && !finding.fixed;
    });
    return Fail(Code::kCorrupt, "{}: {}", when,
                serious == found.findings.end() ? "corruptions" : serious->text);
  };
  const uint64_t before = TRY(store.Size());
  TRY(check(CheckOptions::kLeaks, "the image has to be repaired first"));
  CompactReport report = TRY(check::Compactor(TRY(check::LoadImage(store)), open).Run());
  report.size_before = before;
  TRY(check(CheckOptions::kNone, "after compacting"));
  return report;
}

}  // namespace platter::qcow2
