// The check of one sparse extent is a walk over its directory and tables, in which each thing that
// has a place in the file claims it in a bitmap. A claim of what is claimed already is a conflict;
// where there are any, a second walk with a new bitmap finds out whose the first claims were.
//
// A grain table is walked once: a second directory entry for it is a conflict, and no more. So the
// time that a check takes is bounded by the file's size, whatever the header claims.
//
// The bitmap has at most 64 MiB: a bit for a sector, for files of up to 256 GiB; for larger ones a
// bit stands for more, and claims mark what they fill.
#include "formats/vmdk/vmdk_check.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/endian.h"
#include "formats/vmdk/vmdk_layer.h"

namespace platter::vmdk {
namespace {

using Finding = CheckReport::Finding;

constexpr uint64_t kMostBits = 64 * kMiB * 8;
constexpr size_t kMostConflicts = 1000;
constexpr uint64_t kDirectoryPiece = 64 * kKiB;  // bytes read at once

// Whose a claim is.
struct Owner {
  enum Kind : uint8_t {
    kHeader,
    kDescriptor,
    kDirectory,
    kRedundantDirectory,
    kTable,
    kRedundantTable,
    kGrain
  } kind;
  uint64_t table = 0, index = 0;

  std::string Text() const {
    switch (kind) {
      case kHeader: return "the header";
      case kDescriptor: return "the descriptor";
      case kDirectory: return "the grain directory";
      case kRedundantDirectory: return "the redundant grain directory";
      case kTable: return fmt::format("grain table {}", table);
      case kRedundantTable: return fmt::format("redundant grain table {}", table);
      case kGrain: break;
    }
    return fmt::format("the grain of table {}, entry {}", table, index);
  }
};

class Bitmap {
 public:
  explicit Bitmap(uint64_t bytes) {
    while (bytes / granule_ >= kMostBits) granule_ *= 2;
    bits_.resize(bytes / granule_ + 1);
  }
  uint64_t granule() const { return granule_; }
  // The first byte of `host` that was claimed already, or nothing; claims all of it.
  std::optional<uint64_t> Claim(Range host) {
    std::optional<uint64_t> taken;
    uint64_t first = DivideUp(host.offset, granule_), end = DivideUp(host.end(), granule_);
    if (granule_ == kSector) first = host.offset / granule_;
    for (uint64_t i = first; i < std::min<uint64_t>(end, bits_.size()); ++i) {
      if (bits_[i] && !taken) taken = i * granule_;
      bits_[i] = true;
    }
    return taken;
  }
  // The next run of what nobody claimed, from `at` on.
  Range NextFree(uint64_t at, uint64_t limit) const {
    uint64_t i = DivideUp(at, granule_), end = std::min<uint64_t>(limit / granule_, bits_.size());
    while (i < end && bits_[i]) ++i;
    uint64_t first = i;
    while (i < end && !bits_[i]) ++i;
    return Range::FromTo(first * granule_, std::max(first, i) * granule_);
  }
  // What of a free run nobody can have claimed: claims do not mark granules that they fill in part.
  Range Inside(Range run) const {
    if (granule_ == kSector) return run;
    const Range inside = Range::FromTo(run.offset, run.end() - granule_);
    return inside.length > granule_ ? Range::FromTo(inside.offset + granule_, inside.end())
                                    : Range{run.offset, 0};
  }

 private:
  uint64_t granule_ = kSector;
  std::vector<bool> bits_;
};

class ExtentCheck {
 public:
  ExtentCheck(SparseExtent& extent, std::string name, const CheckOptions& options,
              CheckReport& report)
      : extent_(extent),
        g_(extent.geometry()),
        file_(extent.file()),
        name_(std::move(name)),
        options_(options),
        report_(report) {}

  Result<> Run() {
    size_ = TRY(file_.Size());
    if (extent_.used_redundant()) {
      Add(Finding::kCorruption,
          "the grain directory is not inside the file; the redundant one is "
          "used instead");
    }
    report_.total_units += DivideUp(g_.capacity, g_.grain);
    TRY(Walk());
    if (!conflicts_.empty()) {
      naming_ = true;
      TRY(Walk());
      TellConflicts();
    }
    if (changed_) TRY(file_.Sync());
    return {};
  }

 private:
  struct Conflict {
    uint64_t at;  // a byte that both have
    Owner second;
    std::optional<Owner> first;
  };

  void Add(Finding::Kind kind, const std::string& text, bool fixed = false) {
    report_.Add(kind, name_.empty() ? text : fmt::format("extent '{}': {}", name_, text), fixed);
  }
  // What the first walk alone tells.
  void Tell(Finding::Kind kind, const std::string& text, bool fixed = false) {
    if (!naming_) Add(kind, text, fixed);
  }

  bool MayFix(CheckOptions::Repair least) const {
    return !naming_ && options_.repair >= least && g_.kind == SparseKind::kHosted &&
           !extent_.used_redundant() && file_.writable();
  }

  // False if somebody has claimed part of it before.
  bool Claim(Range host, Owner owner) {
    if (naming_) {
      for (Conflict& conflict : conflicts_) {
        if (!conflict.first && host.Contains(conflict.at)) conflict.first = owner;
      }
    }
    auto taken = bitmap_->Claim(host);
    if (taken && !naming_) {
      ++conflict_count_;
      if (conflicts_.size() < kMostConflicts) conflicts_.push_back({*taken, owner, {}});
    }
    report_.image_end = std::max(report_.image_end, std::min(host.end(), size_));
    return !taken;
  }

  void TellConflicts() {
    for (const Conflict& conflict : conflicts_) {
      Add(Finding::kCorruption,
          fmt::format("{} and {} are both at {:#x}", conflict.second.Text(),
                      conflict.first ? conflict.first->Text() : "something else", conflict.at));
    }
    if (conflict_count_ > conflicts_.size()) {
      report_.corruptions += conflict_count_ - conflicts_.size();
    }
  }

  Result<> Walk() {
    bitmap_.emplace(size_);
    const uint64_t length = g_.directory_entries * g_.entry_size();
    Claim({0, kSector}, {Owner::kHeader});
    if (!g_.descriptor.empty()) Claim(g_.descriptor, {Owner::kDescriptor});
    if (length > 0) Claim({g_.directory, length}, {Owner::kDirectory});
    if (g_.redundant) Claim({*g_.redundant, length}, {Owner::kRedundantDirectory});
    for (uint64_t at = 0; at < length; at += kDirectoryPiece) {
      TRY(WalkDirectory({at, std::min(kDirectoryPiece, length - at)}));
    }
    return naming_ ? Result<>() : TellLost();
  }

  Result<> WalkDirectory(Range piece) {
    std::vector<std::byte> first(piece.length), second;
    TRY_AS("grain directory", file_.Read(g_.directory + piece.offset, Bytes(first)));
    if (g_.redundant) {
      second.resize(piece.length);
      TRY_AS("redundant grain directory", file_.Read(*g_.redundant + piece.offset, Bytes(second)));
    }
    for (uint64_t i = 0; i < piece.length / g_.entry_size(); ++i) {
      uint64_t table = piece.offset / g_.entry_size() + i;
      std::optional<uint64_t> other;
      if (g_.redundant) other = LoadEntry(g_, second, i);
      TRY(WalkEntry(table, LoadEntry(g_, first, i), other));
    }
    return {};
  }

  // A table that can be read; empty where it cannot, which is told.
  std::vector<std::byte> ReadTable(uint64_t place, const std::string& what) {
    std::vector<std::byte> bytes(g_.table_bytes());
    auto read = file_.Read(place, Bytes(bytes));
    if (read.has_value()) return bytes;
    Tell(Finding::kError, fmt::format("{}: {}", what, read.error().text()));
    return {};
  }

  // One entry of the directory, and of the redundant one.
  Result<> WalkEntry(uint64_t table, uint64_t entry, std::optional<uint64_t> other) {
    Result<uint64_t> first = extent_.GoodTable(entry);
    Result<uint64_t> second = other ? extent_.GoodTable(*other) : uint64_t{0};
    const std::string what = fmt::format("grain directory entry {}", table);
    const bool second_good = second.has_value() && *second != 0;
    if (!first.has_value() || (*first == 0 && second_good)) {
      std::string why = first.has_value() ? "it is empty" : first.error().text();
      bool fix = second_good && MayFix(CheckOptions::kAll) && *second < (kSector << 32);
      if (fix) {
        // A table of its own again, with what the redundant one says.
        TRY(RestoreTable(table, *second));
      }
      Tell(Finding::kCorruption,
           fmt::format("{}: {}{}", what, why,
                       second_good && !fix ? "; the redundant one is used instead" : ""),
           fix);
      if (!second_good) return {};
      first = *second;
      second = uint64_t{0};
      other.reset();
    }
    if (other && (!second.has_value() || (*first != 0 && *second == 0))) {
      Tell(Finding::kCorruption,
           fmt::format("redundant {}: {}", what,
                       second.has_value() ? "it is empty" : second.error().text()));
    }
    if (*first == 0) return {};
    if (!Claim({*first, g_.table_bytes()}, {Owner::kTable, table})) return {};
    std::vector<std::byte> bytes = ReadTable(*first, fmt::format("grain table {}", table));
    std::vector<std::byte> copy;
    if (second.has_value() && *second != 0) {
      Claim({*second, g_.table_bytes()}, {Owner::kRedundantTable, table});
      copy = ReadTable(*second, fmt::format("redundant grain table {}", table));
    }
    if (bytes.empty()) return {};
    if (!copy.empty()) TRY(Compare(table, {*first, *second}, bytes, copy));
    WalkTable(table, bytes);
    return {};
  }

  // The directory names the redundant table too, until the end of the file has a copy of it.
  Result<> RestoreTable(uint64_t table, uint64_t from) {
    std::vector<std::byte> bytes(g_.table_bytes());
    TRY(file_.Read(from, Bytes(bytes)));
    // Not where the last grain goes on that the file may hold in part.
    uint64_t place = RoundUp(TRY(file_.Size()), kSector) + g_.grain - kSector;
    if (place + bytes.size() > kSector << 32) {
      return Fail(Code::kNoSpace, "the extent would be larger than 2 TiB");
    }
    TRY(file_.Write(place, ConstBytes(bytes)));
    TRY(file_.Sync());
    TRY(file_.Write(g_.directory + table * sizeof(le32),
                    AsBytes(le32(static_cast<uint32_t>(place / kSector)))));
    changed_ = true;
    return {};
  }

  struct Places {
    uint64_t first, second;
  };

  // The two tables should say the same. What one of them says and cannot mean gives way to the
  // other; else the first is right.
  Result<> Compare(uint64_t table, Places places, std::vector<std::byte>& bytes,
                   std::vector<std::byte>& copy) {
    uint64_t differ = 0, damaged = 0;
    for (uint64_t i = 0; i < g_.table_entries; ++i) {
      uint64_t a = LoadEntry(g_, bytes, i), b = LoadEntry(g_, copy, i);
      if (a == b) continue;
      ++differ;
      bool good = extent_.GoodGrain(a).has_value();
      if (good || !extent_.GoodGrain(b).has_value()) {
        StoreAt(Bytes(copy), i * sizeof(le32), le32(static_cast<uint32_t>(a)));
        continue;
      }
      ++damaged;
      StoreAt(Bytes(bytes), i * sizeof(le32), le32(static_cast<uint32_t>(b)));
    }
    if (differ == 0) return {};
    bool fix = MayFix(damaged > 0 ? CheckOptions::kAll : CheckOptions::kLeaks);
    if (fix) {
      if (damaged > 0) TRY(file_.Write(places.first, ConstBytes(bytes)));
      TRY(file_.Write(places.second, ConstBytes(copy)));
      changed_ = true;
    }
    if (damaged > 0) {
      Tell(Finding::kCorruption,
           fmt::format("grain table {}: {} entries are damaged where the redundant table is not",
                       table, damaged),
           fix);
    }
    if (differ > damaged) {
      Tell(Finding::kLeak,
           fmt::format("grain table {}: the redundant table differs in {} entries", table,
                       differ - damaged),
           fix);
    }
    return {};
  }

  void WalkTable(uint64_t table, ConstBytes bytes) {
    uint64_t expected = 0;
    for (uint64_t i = 0; i < g_.table_entries; ++i) {
      const uint64_t guest = (table * g_.table_entries + i) * g_.grain;
      uint64_t entry = LoadEntry(g_, bytes, i);
      if (entry == 0) continue;
      auto tell = [&](const std::string& why) {
        Tell(Finding::kCorruption, fmt::format("grain table {}, entry {}: {}", table, i, why));
      };
      Result<Grain> grain = extent_.GoodGrain(entry);
      if (!grain.has_value()) {
        tell(grain.error().text());
        continue;
      }
      if (grain->kind != Grain::kData) continue;
      if (guest >= g_.capacity) {
        tell(fmt::format("it names a grain past the end of the disk, at {:#x}", grain->host));
        continue;
      }
      Range host{grain->host, g_.grain};
      if (g_.compressed()) {
        auto stream = extent_.PackedHost(guest, grain->host);
        if (!stream.has_value()) {
          tell(stream.error().text());
          continue;
        }
        // Without markers nobody knows how long it is.
        host.length = g_.markers() ? RoundUp(stream->end(), kSector) - host.offset : kSector;
      }
      Claim(host, {Owner::kGrain, table, i});
      if (naming_) continue;
      ++report_.allocated_units;
      if (g_.compressed()) ++report_.compressed_units;
      if (expected != 0 && host.offset != expected) ++report_.fragmented_units;
      expected = host.end();
    }
  }

  // Of plain hosted extents: a crash leaves grains that nothing names. Where the file has a hole
  // nothing is lost.
  Result<> TellLost() {
    if (g_.kind != SparseKind::kHosted || g_.compressed() || g_.markers()) return {};
    // What was not read as it should be may name whatever seems to be lost.
    const bool doubt = report_.corruptions + report_.corruptions_fixed + report_.errors > 0;
    const bool fix =
        MayFix(CheckOptions::kLeaks) && file_.caps().punch && !doubt && conflict_count_ == 0;
    if (fix) TRY(file_.Sync());
    uint64_t lost = 0, first = 0;
    for (uint64_t at = std::min(g_.overhead, size_); at < size_;) {
      Range run = bitmap_->NextFree(at, size_);
      if (run.empty()) break;
      at = run.end();
      run = bitmap_->Inside(run);
      if (run.length < g_.grain) continue;
      const uint64_t bytes = TRY(DataIn(run));
      if (bytes == 0) continue;
      if (lost == 0) first = run.offset;
      lost += DivideUp(bytes, g_.grain);
      if (fix) TRY(file_.Zero(run, /*may_unmap=*/true));
    }
    if (lost == 0) return {};
    if (fix) TRY(file_.Sync());
    Add(Finding::kLeak,
        fmt::format("{} grains are named by no table, the first at {:#x}", lost, first), fix);
    (fix ? report_.leaks_fixed : report_.leaks) += lost - 1;
    return {};
  }

  // Bytes of `range` for which the file has space.
  Result<uint64_t> DataIn(Range range) {
    uint64_t bytes = 0;
    while (!range.empty()) {
      Store::Run run = TRY(file_.FindRun(range.offset));
      run.length = std::min(run.length, range.length);
      if (run.data) bytes += run.length;
      range = Range::FromTo(range.offset + run.length, range.end());
    }
    return bytes;
  }

  SparseExtent& extent_;
  const SparseGeometry& g_;
  Store& file_;
  const std::string name_;
  const CheckOptions& options_;
  CheckReport& report_;
  uint64_t size_ = 0;
  std::optional<Bitmap> bitmap_;
  std::vector<Conflict> conflicts_;
  uint64_t conflict_count_ = 0;
  bool naming_ = false;  // the second walk
  bool changed_ = false;
};

}  // namespace

Result<CheckReport> CheckVmdk(Store& store, const OpenOptions& open, const CheckOptions& options) {
  VmdkLayer::Parts parts = TRY(OpenParts(store, open, /*to_check=*/true));
  CheckReport report;
  for (DiskExtent& extent : parts.extents) {
    if (extent.sparse) {
      std::string name = parts.extents.size() > 1 ? Printable(extent.line.name) : "";
      TRY(ExtentCheck(*extent.sparse, std::move(name), options, report).Run());
      continue;
    }
    if (!extent.store || extent.end >= extent.offset + extent.guest.length) continue;
    report.Add(
        Finding::kCorruption,
        fmt::format("extent '{}': its file ends at {:#x}, and {:#x} are needed",
                    Printable(extent.line.name), extent.end, extent.offset + extent.guest.length));
  }
  return report;
}

}  // namespace platter::vmdk
