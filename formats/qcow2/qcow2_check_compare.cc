// Both sides are walked together in ascending order, one refcount block at a time: the pages of the
// reference map, and the block with the stored refcounts. Where there is no page, only a nonzero
// refcount is news; where there is no block, only a reference is. So a sparse file costs what is
// used of it.
//
// Qualms about single clusters are collected as suspects; only if there are any are the tables read
// a second time, to say who refers to them.
#include "formats/qcow2/qcow2_check_compare.h"

#include <algorithm>
#include <bit>
#include <map>
#include <tuple>

#include "formats/qcow2/qcow2_check_tables.h"

namespace platter::qcow2::check {
namespace {

constexpr auto kLeak = CheckReport::Finding::kLeak;
constexpr auto kCorruption = CheckReport::Finding::kCorruption;
constexpr auto kError = CheckReport::Finding::kError;
constexpr uint64_t kPage = RefMap::kPageClusters;

class Comparison {
 public:
  Comparison(const Image& image, Survey& survey)
      : image_(image), header_(image.header), s_(survey), slots_(survey.refs.Sorted()) {}

  uint64_t Run() {
    uint64_t blocks = BlocksInFile(image_);
    Holes holes(image_);
    std::vector<std::byte> block(image_.cluster_size());
    for (uint64_t i = 0; i < blocks; ++i) {
      uint64_t value = i < s_.blocks.size() ? s_.blocks[i] : 0;
      if (value == 0 && SkipUnused(i, blocks)) continue;
      One(i, value, holes, block);
    }
    EndRun();
    FindRebuild();
    Explain();
    return (last_used_ + 1) << header_.cluster_bits;
  }

 private:
  struct Suspect {
    uint64_t stored, counted;
    bool overlap, low;
    bool refcounts = false;  // one of the structures that overlap holds refcounts
  };

  // Moves `index` to the last of the blocks that are missing and not needed either.
  bool SkipUnused(uint64_t& index, uint64_t blocks) const {
    uint64_t needed = blocks;
    if (next_slot_ < slots_.size()) {
      needed = slots_[next_slot_]->first * kPage / header_.refcounts_per_block();
    }
    if (needed <= index) return false;
    while (index + 1 < needed && (index + 1 >= s_.blocks.size() || s_.blocks[index + 1] == 0)) {
      if (index + 1 >= s_.blocks.size()) {
        index = needed - 1;
      } else {
        ++index;
      }
    }
    return true;
  }

  // Compares what block `index` covers. `value` is what the refcount table says.
  void One(uint64_t index, uint64_t value, Holes& holes, std::vector<std::byte>& block) {
    Clusters range = BlockClusters(image_, index);
    bool known = value == 0 || IsBlock(value);
    bool zero = value == 0;
    if (value == kBadBlock) {
      s_.findings.Add(kError, Remedy::kRebuild, [&] {
        return fmt::format(
            "refcounts of clusters {} to {}: unknown, because entry {} of the "
            "refcount table is damaged",
            range.first, range.end - 1, index);
      });
    } else if (IsBlock(value)) {
      zero = holes.Covers({value, image_.cluster_size()});
      auto read = zero ? Result<>() : image_.Read(value, block);
      if (!read.has_value()) {
        known = false;
        s_.findings.Add(kError, Remedy::kNone, [&] {
          return fmt::format("refcount block {} at {:#x}: {}", index, value, read.error().text());
        });
      }
    }
    if (zero && !AnyReference(range)) return;
    if (zero) std::fill(block.begin(), block.end(), std::byte{0});
    ConstBytes counts = known ? ConstBytes(block) : ConstBytes();
    for (uint64_t at = range.first; at < range.end;) {
      uint64_t end = std::min(range.end, RoundDown(at, kPage) + kPage);
      ComparePage(at, end, at - range.first, counts);
      at = end;
    }
  }

  bool AnyReference(Clusters range) const {
    auto at = std::lower_bound(
        slots_.begin(), slots_.end(), range.first / kPage,
        [](const RefMap::Slot* slot, uint64_t page) { return slot->first < page; });
    return at != slots_.end() && (*at)->first * kPage < range.end;
  }

  // Clusters [at, end), all of one page; the first one's refcount is number `slot` of the block.
  // `block` is empty where the refcounts are unknown.
  void ComparePage(uint64_t at, uint64_t end, uint64_t slot, ConstBytes block) {
    while (next_slot_ < slots_.size() && slots_[next_slot_]->first < at / kPage) ++next_slot_;
    RefMap::Slot* page = nullptr;
    if (next_slot_ < slots_.size() && slots_[next_slot_]->first == at / kPage) {
      page = slots_[next_slot_];
    }
    uint64_t overlaps = page != nullptr ? s_.refs.Overlaps(*page) : 0;
    if (page == nullptr && (block.empty() || NoRefcounts(block, slot, end - at))) return;
    for (uint64_t cluster = at; cluster < end; ++cluster, ++slot) {
      uint64_t counted = page == nullptr ? 0 : s_.refs.Count(*page, cluster % kPage);
      uint64_t stored = counted;
      if (!block.empty()) stored = LoadRefcount(block, header_.refcount_order, slot);
      // Refcounts past the end of the file are of no consequence: nothing is kept from use there.
      if (counted == 0 && (stored == 0 || cluster >= image_.clusters())) continue;
      last_used_ = std::max(last_used_, cluster);
      if (page != nullptr && !block.empty()) {
        uint64_t bit = RefMap::Bit(cluster);
        page->second.known |= bit;
        if (stored == 1) page->second.one |= bit;
        if (stored > 1) page->second.many |= bit;
      }
      Judge(cluster, stored, counted, overlaps & RefMap::Bit(cluster));
    }
  }

  bool NoRefcounts(ConstBytes block, uint64_t slot, uint64_t count) const {
    uint64_t bits = header_.refcount_bits();
    uint64_t begin = slot * bits / 8, end = DivideUp((slot + count) * bits, 8);
    return IsZero(block.subspan(begin, end - begin));
  }

  void Judge(uint64_t cluster, uint64_t stored, uint64_t counted, bool overlap) {
    bool low = stored < counted;
    if (overlap || (low && counted > 1)) {
      if (suspects_.size() < Findings::kKept) {
        suspects_[cluster] = {stored, counted, overlap, low, false};
      } else {
        ++unnamed_[overlap];
      }
      low = false;
    }
    if (low || stored > counted) {
      ExtendRun(cluster, stored, counted);
    } else {
      EndRun();
    }
  }

  // Neighbours of which the same is to be said are one finding text, counted each.
  void ExtendRun(uint64_t cluster, uint64_t stored, uint64_t counted) {
    if (run_count_ > 0 && run_first_ + run_count_ == cluster && run_stored_ == stored &&
        run_counted_ == counted) {
      ++run_count_;
      return;
    }
    EndRun();
    run_first_ = cluster, run_count_ = 1, run_stored_ = stored, run_counted_ = counted;
  }

  void EndRun() {
    if (run_count_ == 0) return;
    bool leak = run_stored_ > run_counted_;
    auto text = [&] {
      std::string what =
          run_count_ == 1 ? fmt::format("cluster {:#x}", image_.Offset(run_first_))
                          : fmt::format("clusters {:#x} to {:#x} ({})", image_.Offset(run_first_),
                                        image_.Offset(run_first_ + run_count_ - 1), run_count_);
      return fmt::format("{}: refcount {}, but {} reference{}{}", what, run_stored_, run_counted_,
                         run_counted_ == 1 ? "" : "s", leak ? " (leaked)" : "");
    };
    s_.findings.Add(leak ? kLeak : kCorruption, leak ? Remedy::kLower : Remedy::kRaise, text,
                    run_count_);
    run_count_ = 0;
  }

  // The refcount structures cannot be mended in place where they are used by something else too,
  // or do not cover what is in use.
  void FindRebuild() {
    auto claim = [&](uint64_t cluster) {
      if (s_.refs.Count(cluster) <= 1) return;
      s_.rebuild = true;
      if (auto suspect = suspects_.find(cluster); suspect != suspects_.end()) {
        suspect->second.refcounts = true;
      }
    };
    for (uint64_t value : s_.blocks) {
      if (IsBlock(value & ~kRepeatedBlock)) claim(image_.Cluster(value & ~kRepeatedBlock));
    }
    for (uint64_t i = 0; i < header_.refcount_table_clusters; ++i) {
      claim(image_.Cluster(header_.refcount_table_offset) + i);
    }
    static_assert((uint64_t{1} << kMinClusterBits) * 8 / 64 >= kPage);  // a page is in one block
    for (const RefMap::Slot* slot : slots_) {
      uint64_t index = slot->first * kPage / header_.refcounts_per_block();
      s_.rebuild |= index >= s_.blocks.size() || s_.blocks[index] == 0;
    }
  }

  bool FlagsAreWrong() const {
    for (const RefMap::Slot* slot : slots_) {
      const RefMap::Page& page = slot->second;
      if (((page.copied & ~page.one) | (page.shared & page.one)) & page.known) return true;
    }
    return false;
  }

  // Second reading, where there is something to explain.
  void Explain() {
    bool flags = FlagsAreWrong();
    if (suspects_.empty() && !flags) return;
    std::vector<uint64_t> clusters;
    clusters.reserve(suspects_.size());
    for (const auto& [cluster, suspect] : suspects_) clusters.push_back(cluster);
    for (RefMap::Slot* slot : slots_) {
      auto at = std::lower_bound(clusters.begin(), clusters.end(), slot->first * kPage);
      for (; at != clusters.end() && *at / kPage == slot->first; ++at) {
        slot->second.suspect |= RefMap::Bit(*at);
      }
    }
    Owners owners;
    if (!suspects_.empty()) FindMetadataOwners(image_, s_, clusters, owners);
    Findings earlier = std::move(s_.findings);
    s_.findings = Findings();
    if (flags) ExamineL1();
    ExamineTables(image_, s_, owners);
    Findings flag_findings = std::move(s_.findings);
    s_.findings = std::move(earlier);
    for (const auto& [cluster, suspect] : suspects_) Report(cluster, suspect, owners);
    ReportUnnamed();
    s_.findings.Take(std::move(flag_findings));
  }

  void Report(uint64_t cluster, const Suspect& suspect, const Owners& owners) {
    // New refcount structures leave the cluster to its other owner.
    Remedy remedy = suspect.refcounts ? Remedy::kRebuild
                    : suspect.overlap ? Remedy::kNone
                                      : Remedy::kRaise;
    s_.findings.Add(kCorruption, remedy, [&] {
      std::string text =
          fmt::format("cluster {:#x}: {}", image_.Offset(cluster), owners.Describe(cluster));
      if (suspect.overlap) text += " overlap";
      if (suspect.low) {
        text += fmt::format(" (refcount {}, but {} references)", suspect.stored, suspect.counted);
      }
      return text;
    });
  }

  void ReportUnnamed() {
    for (bool overlap : {false, true}) {
      if (unnamed_[overlap] == 0) continue;
      s_.findings.Add(
          kCorruption, overlap ? Remedy::kNone : Remedy::kRaise,
          [&] {
            return fmt::format("{} more clusters {}", unnamed_[overlap],
                               overlap ? "in which structures overlap"
                                       : "with more references than their refcount");
          },
          unnamed_[overlap]);
    }
  }

  void ExamineL1() {
    std::ignore = VisitEntries(image_, s_, Region::kActiveL1, [&](const TableEntry& entry) {
      uint64_t offset = entry.value & kOffsetMask;
      if (offset == 0 || !IsAligned(offset, image_.cluster_size())) return;
      const RefMap::Page* page = s_.refs.Find(image_.Cluster(offset));
      uint64_t bit = RefMap::Bit(image_.Cluster(offset));
      bool copied = entry.value & kCopied;
      if (page == nullptr || !(page->known & bit) || image_.PastEnd({offset, 1})) return;
      if (copied == static_cast<bool>(page->one & bit)) return;
      s_.findings.Add(kCorruption, Remedy::kFlag, [&] {
        return fmt::format(
            "{}: entry {}: \"copied\" flag is {}, but the refcount of the L2 table's cluster {:#x} "
            "is {}",
            s_.Name(entry.region), entry.index, copied ? "set" : "clear", offset,
            page->one & bit    ? "1"
            : page->many & bit ? "more than 1"
                               : "0");
      });
    });
  }

  const Image& image_;
  const Header& header_;
  Survey& s_;
  std::vector<RefMap::Slot*> slots_;
  size_t next_slot_ = 0;
  uint64_t last_used_ = 0;
  std::map<uint64_t, Suspect> suspects_;
  uint64_t unnamed_[2] = {0, 0};  // suspects beyond the first thousand, by `overlap`
  // The run of like findings that is being extended.
  uint64_t run_first_ = 0, run_count_ = 0, run_stored_ = 0, run_counted_ = 0;
};

}  // namespace

uint64_t BlocksInFile(const Image& image) {
  // A compressed unit may end in the cluster after the last one.
  return DivideUp(image.clusters() + 1, image.header.refcounts_per_block());
}

Clusters BlockClusters(const Image& image, uint64_t index) {
  uint64_t per_block = image.header.refcounts_per_block();
  return {index * per_block, std::min((index + 1) * per_block, image.clusters() + 1)};
}

uint64_t CompareRefcounts(const Image& image, Survey& survey) {
  return Comparison(image, survey).Run();
}

}  // namespace platter::qcow2::check
