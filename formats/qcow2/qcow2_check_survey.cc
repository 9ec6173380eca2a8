#include "formats/qcow2/qcow2_check_survey.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "base/endian.h"

namespace platter::qcow2::check {
namespace {

constexpr auto kCorruption = CheckReport::Finding::kCorruption;
constexpr auto kError = CheckReport::Finding::kError;

constexpr uint64_t kMaxFileOffset = uint64_t{1} << 63;
constexpr size_t kPiece = 256 * kKiB;  // of a table, read at once
// Clusters that regions may cover. Real ones are far below; an image that claims more lives of
// holes, and counting them one by one would take for ever.
constexpr uint64_t kMaxRegionClusters = uint64_t{1} << 24;
constexpr size_t kCompactTables = size_t{1} << 20;

uint32_t SaturatingAdd(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<uint32_t>::max() : sum;
}

// Sorts and makes one of the references to the same table.
void Compact(std::vector<TableRef>& tables) {
  std::sort(tables.begin(), tables.end(), [](const TableRef& a, const TableRef& b) {
    if (a.offset != b.offset) return a.offset < b.offset;
    return a.owner != b.owner ? a.owner < b.owner : a.l1_index < b.l1_index;
  });
  size_t kept = 0;
  for (const TableRef& table : tables) {
    if (kept > 0 && tables[kept - 1].offset == table.offset) {
      tables[kept - 1].total = SaturatingAdd(tables[kept - 1].total, table.total);
      tables[kept - 1].active = SaturatingAdd(tables[kept - 1].active, table.active);
    } else {
      tables[kept++] = table;
    }
  }
  tables.resize(kept);
}

class Surveyor {
 public:
  Surveyor(const Image& image, Survey& survey) : image_(image), header_(image.header), s_(survey) {}

  void Run() {
    AddRegion({Region::kHeader, 0, {0, image_.cluster_size()}});
    if (header_.crypto) {
      AddRegion({Region::kLuksHeader, 0, {header_.crypto->offset, header_.crypto->length}});
    }
    AddRegion({Region::kActiveL1, 0, {header_.l1_offset, uint64_t{header_.l1_size} * 8}});
    Snapshots();
    RefcountTable();
    Bitmaps();
    CountRegions();
    for (Region::Part part : {Region::kActiveL1, Region::kSnapshotL1}) {
      VisitAll(part, [this](const TableEntry& entry) { L1Entry(entry); });
    }
    Compact(s_.tables);
    VisitAll(Region::kBitmapTable, [this](const TableEntry& entry) { BitmapEntry(entry); });
  }

 private:
  // Notes a structure that could not be read or followed.
  template <class Text>
  void Lose(CheckReport::Finding::Kind kind, Text&& text) {
    s_.findings.Add(kind, Remedy::kNone, std::forward<Text>(text));
    s_.incomplete = true;
  }

  // Keeps the region for counting, unless it leaves the file: then what it should hold is not
  // there, and its clusters are somebody else's. Its part inside the file is followed all the same.
  void AddRegion(const Region& region) {
    if (region.range.empty()) return;
    s_.regions.push_back(region);
    if (!image_.PastEnd(region.range)) return;
    auto text = [&] {
      return fmt::format("{}: ends past the end of the file ({} bytes at {:#x}, file size {:#x})",
                         s_.Name(region), region.range.length, region.range.offset, image_.size);
    };
    if (region.part == Region::kRefcountTable) {
      s_.findings.Add(kCorruption, Remedy::kRebuild, text);
      s_.rebuild = true;
    } else {
      Lose(kCorruption, text);
    }
  }

  void CountRegions() {
    std::vector<Range> ranges;
    ranges.reserve(s_.regions.size());
    for (const Region& region : s_.regions) {
      bool counted = !image_.PastEnd(region.range);
      ranges.push_back(counted ? region.range.Outward(image_.cluster_size()) : Range{});
    }
    uint64_t total = 0;
    Sweep(ranges, [&](Range segment, const std::set<uint32_t>& covering) {
      uint64_t first = image_.Cluster(segment.offset), count = image_.Cluster(segment.length);
      if (count > kMaxRegionClusters - total) {
        Lose(kError, [&] {
          return fmt::format("{}: tables of more than {} clusters, the rest was not counted",
                             s_.Name(s_.regions[*covering.begin()]), kMaxRegionClusters);
        });
        count = kMaxRegionClusters - total;
      }
      total += count;
      for (uint64_t i = 0; i < count; ++i) s_.refs.Add(first + i, Use::kSingle, covering.size());
    });
  }

  void Snapshots() {
    if (header_.snapshot_count == 0) return;
    uint64_t at = header_.snapshots_offset;
    std::vector<std::byte> window;  // of the table, refilled as the entries are walked
    uint64_t window_at = 0;
    for (uint32_t i = 0; i < header_.snapshot_count; ++i) {
      at = RoundUp(at, 8);
      auto disk = LoadFrom<DiskSnapshot>(at, window, window_at);
      uint64_t names = at + sizeof(DiskSnapshot) + (disk ? uint32_t{disk->extra_size} : 0);
      uint64_t end = disk ? names + disk->id_length + disk->name_length : 0;
      if (!disk || end > image_.size) {
        Lose(kCorruption, [&] {
          return fmt::format("snapshot table at {:#x}: ends inside entry {} of {} (at {:#x})",
                             header_.snapshots_offset, i, header_.snapshot_count, at);
        });
        break;
      }
      std::string name(disk->name_length, '\0');
      Bytes into(reinterpret_cast<std::byte*>(name.data()), name.size());
      if (!image_.Read(names + disk->id_length, into).has_value()) name.assign(1, '?');
      s_.snapshots.push_back(Printable(name));
      SnapshotL1(i, *disk);
      at = end;
    }
    AddRegion({Region::kSnapshotTable, 0,
               Range::FromTo(header_.snapshots_offset,
                             std::max(at, header_.snapshots_offset + sizeof(DiskSnapshot)))});
  }

  void SnapshotL1(uint32_t index, const DiskSnapshot& disk) {
    Region region{Region::kSnapshotL1, index, {disk.l1_table_offset, uint64_t{disk.l1_size} * 8}};
    if (region.range.length > kMaxL1Bytes) {
      Lose(kCorruption, [&] {
        return fmt::format("{}: {} entries (at most {})", s_.Name(region), uint32_t{disk.l1_size},
                           kMaxL1Bytes / 8);
      });
    } else if (!IsAligned(region.range.offset, image_.cluster_size()) ||
               !FitsIn(region.range.offset, region.range.length, kMaxFileOffset)) {
      Lose(kCorruption, [&] {
        return fmt::format("{}: not aligned to clusters, or past 2^63", s_.Name(region));
      });
    } else {
      AddRegion(region);
    }
  }

  void RefcountTable() {
    Range range{header_.refcount_table_offset, header_.refcount_table_entries() * 8};
    if (range.empty()) {
      s_.findings.Add(kCorruption, Remedy::kRebuild,
                      [] { return std::string("header: no refcount table (0 clusters)"); });
      s_.rebuild = true;
      return;
    }
    AddRegion({Region::kRefcountTable, 0, range});
    s_.blocks.resize(header_.refcount_table_entries());
    auto read = ReadPieces(image_, range, kPiece, [&](uint64_t at, ConstBytes bytes) {
      for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
        uint64_t entry = *LoadAt<be64>(bytes, i);
        if (entry != 0) RefcountEntry((at + i - range.offset) / 8, entry);
      }
    });
    if (!read.has_value()) {
      s_.rebuild = true;
      Lose(kError, [&] { return fmt::format("refcount table: {}", read.error().text()); });
    }
    MarkRepeatedBlocks();
  }

  void RefcountEntry(uint64_t index, uint64_t entry) {
    uint64_t offset = entry & kRefcountOffsetMask;
    auto bad = [&](std::string_view why) {
      s_.rebuild = true;
      s_.findings.Add(kCorruption, Remedy::kRebuild, [&] {
        return fmt::format("refcount table entry {} ({:#x}): {}", index, entry, why);
      });
    };
    if (entry & ~kRefcountOffsetMask) bad("reserved bits are set");
    if (offset == 0) return;
    s_.blocks[index] = kBadBlock;
    if (!IsAligned(offset, image_.cluster_size())) {
      return bad("the refcount block is not aligned to clusters");
    }
    if (image_.PastEnd({offset, image_.cluster_size()})) {
      // What is missing reads as zeros, as it does for any table; but nobody can read past 2^63.
      if (offset < kMaxFileOffset) s_.blocks[index] = 0;
      return bad(fmt::format("the refcount block is past the end of the file (file size {:#x})",
                             image_.size));
    }
    s_.blocks[index] = offset;
    s_.refs.Add(image_.Cluster(offset), Use::kSingle, 1);
  }

  // A block holds the refcounts of one run of clusters; the table's first entry that names it is
  // believed. That it is named twice is found with the other overlaps.
  void MarkRepeatedBlocks() {
    std::vector<std::pair<uint64_t, size_t>> places;
    for (size_t i = 0; i < s_.blocks.size(); ++i) {
      if (IsBlock(s_.blocks[i])) places.emplace_back(s_.blocks[i], i);
    }
    std::sort(places.begin(), places.end());
    for (size_t i = 1; i < places.size(); ++i) {
      if (places[i].first == places[i - 1].first) s_.blocks[places[i].second] |= kRepeatedBlock;
    }
  }

  void Bitmaps() {
    if (!header_.bitmaps) return;
    Range range{header_.bitmaps->directory_offset, header_.bitmaps->directory_size};
    AddRegion({Region::kBitmapDirectory, 0, range});
    if (image_.PastEnd(range)) return;
    std::vector<std::byte> directory(range.length);
    auto read = image_.Read(range.offset, directory);
    if (!read.has_value()) {
      return Lose(kError, [&] { return fmt::format("bitmap directory: {}", read.error().text()); });
    }
    auto bitmaps = ParseBitmaps(header_, directory);
    if (!bitmaps.has_value()) {
      return Lose(kCorruption, [&] { return bitmaps.error().text(); });
    }
    for (uint32_t i = 0; i < bitmaps->size(); ++i) {
      const Bitmap& bitmap = (*bitmaps)[i];
      s_.bitmaps.push_back(Printable(bitmap.info.name));
      AddRegion({Region::kBitmapTable, i, {bitmap.table_offset, uint64_t{bitmap.table_size} * 8}});
    }
  }

  void VisitAll(Region::Part part, const std::function<void(const TableEntry&)>& visit) {
    auto visited = VisitEntries(image_, s_, part, visit);
    if (!visited.has_value()) {
      Lose(kError, [&] { return visited.error().text(); });
    }
  }

  void BitmapEntry(const TableEntry& entry) {
    uint64_t offset = entry.value & kOffsetMask;
    auto bad = [&](std::string_view why) {
      Lose(kCorruption, [&] {
        return fmt::format("{}: entry {} ({:#x}): {}", s_.Name(entry.region), entry.index,
                           entry.value, why);
      });
    };
    if ((entry.value & kBitmapReserved) || (offset != 0 && (entry.value & kBitmapAllOnes))) {
      bad("reserved bits are set");
    }
    if (offset == 0) return;
    if (!IsAligned(offset, image_.cluster_size())) return bad("not aligned to clusters");
    if (image_.PastEnd({offset, image_.cluster_size()})) return bad("past the end of the file");
    s_.refs.Add(image_.Cluster(offset), Use::kSingle, entry.weight);
  }

  void L1Entry(const TableEntry& entry) {
    uint32_t owner = entry.owner();
    std::string whose = owner == 0 ? "" : fmt::format("snapshot '{}': ", s_.snapshots[owner - 1]);
    uint64_t offset = entry.value & kOffsetMask;
    Range range{offset, image_.cluster_size()};
    bool aligned = IsAligned(offset, image_.cluster_size());
    auto decoded = DecodeL1(header_, entry.value, entry.index);
    if (!decoded.has_value()) {
      s_.findings.Add(kCorruption, Remedy::kNone, [&] { return whose + decoded.error().text(); });
      s_.incomplete |= !aligned;
    }
    if (offset == 0) {
      // Unused, by the letter; but nobody writes an unused entry with the flag: it has lost its
      // table, which may still be there.
      if (decoded.has_value()) {
        Lose(kCorruption, [&] {
          return fmt::format("{}L1 entry {} ({:#x}): \"copied\" flag without an L2 table", whose,
                             entry.index, entry.value);
        });
      }
      return;
    }
    if (image_.PastEnd(range)) {
      s_.incomplete = true;
      if (!decoded.has_value()) return;  // said already that it is wrong
      return s_.findings.Add(kCorruption, Remedy::kNone, [&] {
        return fmt::format(
            "{}L1 entry {} ({:#x}): L2 table past the end of the file (offset {:#x}, "
            "file size {:#x})",
            whose, entry.index, entry.value, offset, image_.size);
      });
    }
    RefMap::Page& page = s_.refs.Add(image_.Cluster(offset), Use::kTable, entry.weight);
    if (!aligned) {
      s_.refs.Add(image_.Cluster(offset) + 1, Use::kTable, entry.weight);
      return;
    }
    if (owner == 0) {
      uint64_t bit = RefMap::Bit(image_.Cluster(offset));
      (entry.value & kCopied ? page.copied : page.shared) |= bit;
    }
    if (s_.refs.overflowed()) return;
    s_.tables.push_back({offset, static_cast<uint32_t>(entry.index), owner, entry.weight,
                         owner == 0 ? entry.weight : 0});
    if (s_.tables.size() >= compact_at_) {
      Compact(s_.tables);
      compact_at_ = std::max(kCompactTables, s_.tables.size() * 2);
    }
  }

  // A T at `at` of the file, through a window that moves on where needed. Nothing past the end.
  template <class T>
  std::optional<T> LoadFrom(uint64_t at, std::vector<std::byte>& window, uint64_t& window_at) {
    if (!FitsIn(at, sizeof(T), image_.size)) return std::nullopt;
    if (at < window_at || !FitsIn(at - window_at, sizeof(T), window.size())) {
      window.resize(std::min<uint64_t>(kPiece, image_.size - at));
      window_at = at;
      if (!image_.Read(at, window).has_value()) return std::nullopt;
    }
    return LoadAt<T>(window, at - window_at);
  }

  const Image& image_;
  const Header& header_;
  Survey& s_;
  size_t compact_at_ = kCompactTables;
};

}  // namespace

std::string Survey::Name(const Region& region) const {
  uint64_t at = region.range.offset;
  switch (region.part) {
    case Region::kHeader: return "header";
    case Region::kLuksHeader: return fmt::format("LUKS header at {:#x}", at);
    case Region::kActiveL1: return fmt::format("L1 table at {:#x}", at);
    case Region::kSnapshotTable: return fmt::format("snapshot table at {:#x}", at);
    case Region::kSnapshotL1:
      return fmt::format("L1 table of snapshot {} ('{}') at {:#x}", region.index,
                         snapshots[region.index], at);
    case Region::kRefcountTable: return fmt::format("refcount table at {:#x}", at);
    case Region::kBitmapDirectory: return fmt::format("bitmap directory at {:#x}", at);
    case Region::kBitmapTable:
      return fmt::format("table of bitmap '{}' at {:#x}", bitmaps[region.index], at);
  }
  return "structure";
}

std::string Survey::Name(const TableRef& table) const {
  if (table.owner == 0) return fmt::format("L2 table {} at {:#x}", table.l1_index, table.offset);
  return fmt::format("L2 table {} of snapshot '{}' at {:#x}", table.l1_index,
                     snapshots[table.owner - 1], table.offset);
}

Result<> VisitEntries(const Image& image, const Survey& survey, Region::Part part,
                      const std::function<void(const TableEntry&)>& visit) {
  std::vector<Range> ranges(survey.regions.size());
  for (size_t i = 0; i < ranges.size(); ++i) {
    const Region& region = survey.regions[i];
    if (region.part == part) ranges[i] = region.range.Intersect({0, RoundUp(image.size, 8)});
  }
  Result<> result;
  Sweep(ranges, [&](Range segment, const std::set<uint32_t>& covering) {
    const Region& region = survey.regions[*covering.begin()];
    auto weight = static_cast<uint32_t>(covering.size());
    auto read = ReadPieces(image, segment, kPiece, [&](uint64_t at, ConstBytes bytes) {
      for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
        uint64_t value = *LoadAt<be64>(bytes, i);
        if (value == 0) continue;
        visit({at + i, value, (at + i - region.range.offset) / 8, region, weight});
      }
    });
    if (!read.has_value() && result.has_value()) {
      result = std::move(read).WithPrefix(survey.Name(region));
    }
  });
  return result;
}

void SurveyMetadata(const Image& image, Survey& survey) { Surveyor(image, survey).Run(); }

namespace {

void FindEntryOwners(const Image& image, const Survey& survey, Owners& owners) {
  for (Region::Part part : {Region::kActiveL1, Region::kSnapshotL1, Region::kBitmapTable}) {
    // What cannot be read has been reported by the survey.
    std::ignore = VisitEntries(image, survey, part, [&](const TableEntry& entry) {
      uint64_t cluster = image.Cluster(entry.value & kOffsetMask);
      if (!survey.refs.IsSuspect(cluster) || (entry.value & kOffsetMask) == 0) return;
      bool bitmap = part == Region::kBitmapTable;
      owners.Add(cluster, [&] {
        return fmt::format("{} named by entry {} of the {}", bitmap ? "bits" : "L2 table",
                           entry.index, survey.Name(entry.region));
      });
    });
  }
}

}  // namespace

void FindMetadataOwners(const Image& image, const Survey& survey,
                        std::span<const uint64_t> suspects, Owners& owners) {
  for (const Region& region : survey.regions) {
    if (image.PastEnd(region.range)) continue;
    Range range = region.range.Outward(image.cluster_size());
    uint64_t end = image.Cluster(range.end());
    auto at = std::lower_bound(suspects.begin(), suspects.end(), image.Cluster(range.offset));
    for (; at != suspects.end() && *at < end; ++at) {
      owners.Add(*at, [&] { return survey.Name(region); });
    }
  }
  for (size_t i = 0; i < survey.blocks.size(); ++i) {
    uint64_t offset = survey.blocks[i] & ~kRepeatedBlock;
    if (!IsBlock(offset) || !survey.refs.IsSuspect(image.Cluster(offset))) continue;
    owners.Add(image.Cluster(offset),
               [&] { return fmt::format("refcount block {} at {:#x}", i, offset); });
  }
  FindEntryOwners(image, survey, owners);
}

}  // namespace platter::qcow2::check
