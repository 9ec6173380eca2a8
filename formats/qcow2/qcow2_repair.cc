// The order of the writes, each step durable before the next begins:
//
//   1  autoclear bits that we do not know are cleared: we are a program that changes the image
//   2  refcounts that are too low are raised: from here on nothing in use can be taken for free
//   3  "copied" flags whose refcount is not one are cleared: nothing shared is overwritten in place
//   4  refcounts that are too high are lowered
//   5  "copied" flags whose refcount is one are set
//
// A crash between any two leaves leaks or needless copies, which the next check finds again.
//
// Where the refcount structures are damaged, new ones are written behind everything that is in use
// (2'), while the header still leads to the old ones; flags (3) come next, and one write of the
// header, inside a sector, then switches to the new structures, raising and lowering at once (4').
// The old structures are free space after that.
//
// If the survey is incomplete nothing is lowered: what looks leaked may belong to a table that
// could not be followed.
#include "formats/qcow2/qcow2_repair.h"

#include <algorithm>
#include <cstddef>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/endian.h"
#include "formats/qcow2/qcow2_check_compare.h"
#include "formats/qcow2/qcow2_check_tables.h"
#include "formats/qcow2/qcow2_refcount_build.h"

namespace platter::qcow2::check {
namespace {

constexpr auto kLeak = CheckReport::Finding::kLeak;
constexpr auto kCorruption = CheckReport::Finding::kCorruption;
constexpr auto kError = CheckReport::Finding::kError;

class Repairer {
 public:
  Repairer(const Image& image, const Survey& survey, CheckOptions::Repair mode, uint64_t image_end)
      : image_(image), header_(image.header), s_(survey), image_end_(image_end) {
    const Findings& found = survey.findings;
    bool all = mode == CheckOptions::kAll;
    bool leaks = found.count(kLeak) > 0;
    plan_.rebuilt = all && survey.rebuild;
    plan_.raised = all && (plan_.rebuilt || found.count(kCorruption, Remedy::kRaise) > 0 ||
                           found.count(kCorruption, Remedy::kNone) > 0);
    // In place only where the structures are sound.
    plan_.lowered = leaks && !survey.incomplete && (plan_.rebuilt || !survey.rebuild);
    bool counts_change = plan_.raised || plan_.lowered;
    bool only_leaks = found.count(kCorruption) + found.count(kError) == 0;
    plan_.flags = all ? counts_change || found.count(kCorruption, Remedy::kFlag) > 0
                      : plan_.lowered && only_leaks;
  }

  Result<Repaired> Run() {
    if (!plan_.Any()) return plan_;
    TRY(ClearUnknownAutoclear());
    if (plan_.rebuilt) {
      TRY_AS("new refcount structures", WriteNewStructures());
    } else if (plan_.raised) {
      TRY_AS("refcounts", UpdateBlocks(/*raise=*/true));
    }
    if (plan_.flags) TRY_AS("copied flags", UpdateFlags(/*set=*/false));
    if (plan_.rebuilt) {
      TRY_AS("header", SwitchHeader());
    } else if (plan_.lowered) {
      TRY_AS("refcounts", UpdateBlocks(/*raise=*/false));
    }
    if (plan_.flags) TRY_AS("copied flags", UpdateFlags(/*set=*/true));
    return plan_;
  }

 private:
  // What the refcount shall be.
  uint64_t Target(uint64_t stored, uint64_t counted) const {
    uint64_t target = stored;
    if (counted > stored ? plan_.raised : plan_.lowered) target = counted;
    return std::min(target, header_.refcount_max());
  }

  Result<> ClearUnknownAutoclear() {
    uint64_t known = header_.autoclear & kKnownAutoclear;
    if (header_.version < 3 || header_.autoclear == known) return {};
    be64 field = known;
    TRY(image_.store.Write(offsetof(DiskHeader, autoclear_features), AsBytes(field)));
    return image_.store.Sync();
  }

  // Moves the refcounts in place, in one direction.
  Result<> UpdateBlocks(bool raise) {
    std::vector<std::byte> block(image_.cluster_size());
    uint64_t blocks = std::min<uint64_t>(s_.blocks.size(), BlocksInFile(image_));
    for (uint64_t i = 0; i < blocks; ++i) {
      if (!IsBlock(s_.blocks[i])) continue;
      TRY(image_.Read(s_.blocks[i], block));
      Clusters range = BlockClusters(image_, i);
      bool changed = false;
      for (uint64_t cluster = range.first; cluster < range.end; ++cluster) {
        uint64_t stored = LoadRefcount(block, header_.refcount_order, cluster - range.first);
        uint64_t counted = s_.refs.Count(cluster);
        if (counted == 0 && cluster >= image_.clusters()) continue;
        uint64_t target = Target(stored, counted);
        if (raise ? target <= stored : target >= stored) continue;
        StoreRefcount(block, header_.refcount_order, cluster - range.first, target);
        changed = true;
      }
      if (changed) TRY(image_.store.Write(s_.blocks[i], ConstBytes(block)));
    }
    return image_.store.Sync();
  }

  // True if the refcount of the cluster is one when the repair is through.
  bool BecomesOne(uint64_t cluster) const {
    const RefMap::Page* page = s_.refs.Find(cluster);
    uint64_t counted = s_.refs.Count(cluster), bit = RefMap::Bit(cluster);
    if (page == nullptr || !(page->known & bit)) return counted == 1;
    return Target(page->one & bit ? 1 : page->many & bit ? 2 : 0, counted) == 1;
  }

  // A structure may be written only if its cluster is nothing else as well.
  bool Exclusive(uint64_t cluster) const {
    const RefMap::Page* page = s_.refs.Find(cluster);
    uint64_t bit = RefMap::Bit(cluster);
    if (page == nullptr) return false;
    if (page->single & bit)
      return s_.refs.Count(cluster) == 1 && !((page->data | page->table) & bit);
    return !(page->data & bit);
  }

  Result<> UpdateFlags(bool set) {
    TRY(UpdateL1Flags(set));
    std::vector<std::byte> bytes(image_.cluster_size());
    Holes holes(image_);
    for (const TableRef& table : s_.tables) {
      if (table.active == 0 || !Exclusive(image_.Cluster(table.offset))) continue;
      if (holes.Covers({table.offset, image_.cluster_size()})) continue;
      auto read = image_.Read(table.offset, bytes);
      if (!read.has_value()) continue;  // reported by the check
      if (UpdateTableFlags(table, bytes, set)) {
        TRY(image_.store.Write(table.offset, ConstBytes(bytes)));
      }
    }
    return image_.store.Sync();
  }

  // Returns whether anything has changed in `bytes`.
  bool UpdateTableFlags(const TableRef& table, Bytes bytes, bool set) const {
    bool changed = false;
    for (uint64_t i = 0; i < header_.l2_entries(); ++i) {
      L2Entry entry = LoadL2(header_, bytes, i);
      if (entry.descriptor == 0) continue;
      uint64_t guest = GuestOffset(header_, table, i);
      bool copied = entry.descriptor & kCopied;
      if (copied == set || WantsFlag(entry, guest) != set) continue;
      StoreAt(bytes, i * header_.l2_entry_size(), be64(entry.descriptor ^ kCopied));
      changed = true;
    }
    return changed;
  }

  // Whether the entry ought to have the flag; as it is for entries that are damaged otherwise.
  bool WantsFlag(L2Entry entry, uint64_t guest) const {
    bool copied = entry.descriptor & kCopied;
    auto decoded = DecodeL2(header_, entry, guest);
    if (!decoded.has_value()) return copied;
    if (decoded->kind == ClusterKind::kCompressedUnit) return false;
    bool allocated =
        decoded->kind == ClusterKind::kNormal || decoded->kind == ClusterKind::kZeroAllocated;
    if (header_.has_data_file()) return allocated || copied;
    if (!allocated || image_.PastEnd({decoded->host, image_.cluster_size()})) return copied;
    return BecomesOne(image_.Cluster(decoded->host));
  }

  Result<> UpdateL1Flags(bool set) {
    Range l1 = Range{header_.l1_offset, uint64_t{header_.l1_size} * 8};
    for (uint64_t at = l1.offset; at < std::min(l1.end(), image_.size);
         at += image_.cluster_size()) {
      if (!Exclusive(image_.Cluster(at))) return {};
    }
    std::vector<std::pair<uint64_t, uint64_t>> changes;
    TRY(VisitEntries(image_, s_, Region::kActiveL1, [&](const TableEntry& entry) {
      uint64_t offset = entry.value & kOffsetMask;
      bool copied = entry.value & kCopied;
      if (offset == 0 || copied == set || !IsAligned(offset, image_.cluster_size())) return;
      if (image_.PastEnd({offset, image_.cluster_size()})) return;
      if (BecomesOne(image_.Cluster(offset)) == set) changes.emplace_back(entry.at, entry.value);
    }));
    for (auto [at, value] : changes) {
      be64 field = value ^ kCopied;
      TRY(image_.store.Write(at, AsBytes(field)));
    }
    return {};
  }

  // --- new refcount structures ---

  Result<NewRefcounts> PlanNewStructures() const {
    // A file grows at its end; a device has to have room behind the last cluster in use.
    bool device = image_.store.caps().block_device;
    if (device && s_.incomplete) {
      return Fail(Code::kRefused, "no place for them is safe: parts of the image are unreadable");
    }
    uint64_t start = device ? image_.Cluster(image_end_) : image_.clusters();
    while (s_.refs.Count(start) > 0) ++start;
    if (device && image_.Offset(start) >= image_.size) {
      return Fail(Code::kNoSpace, "the device is full");
    }
    std::set<uint64_t> indices;
    for (const auto& [page, content] : s_.refs) {
      indices.insert(page * RefMap::kPageClusters / header_.refcounts_per_block());
    }
    if (s_.incomplete) {  // what is stored stays
      uint64_t blocks = std::min<uint64_t>(s_.blocks.size(), BlocksInFile(image_));
      for (uint64_t i = 0; i < blocks; ++i) {
        if (IsBlock(s_.blocks[i])) indices.insert(i);
      }
    }
    return PlanRefcounts(header_, header_.refcount_order, start, std::move(indices));
  }

  // References by the old structures, which go.
  std::unordered_map<uint64_t, uint64_t> OldReferences() const {
    std::unordered_map<uint64_t, uint64_t> old;
    for (uint64_t value : s_.blocks) {
      if (IsBlock(value & ~kRepeatedBlock)) ++old[image_.Cluster(value & ~kRepeatedBlock)];
    }
    for (const Region& region : s_.regions) {
      if (region.part != Region::kRefcountTable || image_.PastEnd(region.range)) continue;
      Range range = region.range.Outward(image_.cluster_size());
      for (uint64_t i = 0; i < image_.Cluster(range.length); ++i) {
        ++old[image_.Cluster(range.offset) + i];
      }
    }
    return old;
  }

  Result<> WriteNewStructures() {
    const NewRefcounts place = TRY(PlanNewStructures());
    const auto old = OldReferences();
    const uint64_t per_block = header_.refcounts_per_block();
    std::vector<std::byte> before(image_.cluster_size());
    uint64_t read = UINT64_MAX;  // which block `before` is
    auto stored = [&](uint64_t cluster) -> Result<uint64_t> {
      const uint64_t index = cluster / per_block;
      bool keep = s_.incomplete && index < s_.blocks.size() && IsBlock(s_.blocks[index]);
      if (!keep || cluster >= image_.clusters()) return 0;
      if (read != index) TRY(image_.Read(s_.blocks[index], before));
      read = index;
      return LoadRefcount(before, header_.refcount_order, cluster % per_block);
    };
    TRY(WriteNewRefcounts(
        image_.store, header_, header_.refcount_order, place,
        [&](uint64_t cluster) -> Result<uint64_t> {
          uint64_t target = std::max(s_.refs.Count(cluster), TRY(stored(cluster)));
          if (auto gone = old.find(cluster); gone != old.end() && target >= gone->second) {
            target -= gone->second;
          }
          return target;
        }));
    new_table_ = image_.Offset(place.table);
    new_table_clusters_ = static_cast<uint32_t>(place.table_clusters);
    return {};
  }

  Result<> SwitchHeader() {
    struct {
      be64 offset;
      be32 clusters;
    } fields{new_table_, new_table_clusters_};
    static_assert(sizeof fields == 12 && offsetof(DiskHeader, refcount_table_clusters) ==
                                             offsetof(DiskHeader, refcount_table_offset) + 8);
    TRY(image_.store.Write(offsetof(DiskHeader, refcount_table_offset), AsBytes(fields)));
    return image_.store.Sync();
  }

  const Image& image_;
  const Header& header_;
  const Survey& s_;
  const uint64_t image_end_;
  Repaired plan_;
  uint64_t new_table_ = 0;
  uint32_t new_table_clusters_ = 0;
};

}  // namespace

Result<Repaired> Repair(const Image& image, const Survey& survey, CheckOptions::Repair mode,
                        uint64_t image_end) {
  if (survey.refs.overflowed()) {
    return Fail(Code::kUnsupported, "too many clusters far from each other to count them all");
  }
  return Repairer(image, survey, mode, image_end).Run();
}

Result<> ClearIncompatible(const Image& image, uint64_t bits) {
  if (image.header.version < 3 || !(image.header.incompatible & bits)) return {};
  be64 field = image.header.incompatible & ~bits;
  TRY(image.store.Write(offsetof(DiskHeader, incompatible_features), AsBytes(field)));
  return image.store.Sync();
}

}  // namespace platter::qcow2::check
