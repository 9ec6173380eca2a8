// RefMap: how often each host cluster is referenced, and by what.
//
// An image of 512-byte clusters may claim 2^47 of them while its file holds a few hundred KiB, so
// memory must follow the references and not the offsets: a hash of pages of 64 clusters, about
// 2.5 bytes a cluster where the clusters of a page are used, about 180 bytes for a lone one. Images
// are dense. One that is made of millions of lone clusters is made to eat memory: past a limit the
// map takes no more of them, and says so.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace platter::qcow2::check {

// What refers to a cluster. A cluster of one use may have several references only for kTable
// (snapshots share L2 tables) and kData; everything else is an overlap.
enum class Use : uint8_t { kSingle, kTable, kData };

class RefMap {
 public:
  static constexpr uint64_t kPageClusters = 64;

  // Bit i of each mask is for cluster i of the page.
  struct Page {
    std::array<uint8_t, kPageClusters> count{};  // kWide: the count is in wide_
    uint64_t single = 0, table = 0, data = 0;    // what refers to it
    // An active L1 or L2 entry that refers to it has the "copied" flag set; has it clear.
    uint64_t copied = 0, shared = 0;
    // Its stored refcount is known; is one; is more than one. Filled by the comparison.
    uint64_t known = 0, one = 0, many = 0;
    uint64_t suspect = 0;  // somebody wants to know what refers to it
  };
  using Slot = std::pair<const uint64_t, Page>;  // page number (cluster / 64) and page

  // Counts `weight` references; saturates. Returns the page, for its masks; a page that counts for
  // nothing where the map is full.
  Page& Add(uint64_t cluster, Use use, uint64_t weight);

  // References were dropped, because they are scattered as no image's are.
  bool overflowed() const { return overflowed_; }

  uint64_t Count(uint64_t cluster) const;
  uint64_t Count(const Slot& slot, unsigned index) const {
    uint8_t count = slot.second.count[index];
    return count == kWide ? wide_.at(slot.first * kPageClusters + index) : count;
  }
  // Null where nothing refers to the page's clusters.
  const Page* Find(uint64_t cluster) const {
    auto at = pages_.find(cluster / kPageClusters);
    return at == pages_.end() ? nullptr : &at->second;
  }

  bool IsSuspect(uint64_t cluster) const {
    const Page* page = Find(cluster);
    return page != nullptr && (page->suspect & Bit(cluster));
  }

  // All pages, in no order.
  auto begin() const { return pages_.begin(); }
  auto end() const { return pages_.end(); }

  // All pages in ascending order; valid until the next Add.
  std::vector<Slot*> Sorted();

  // Clusters of the page that are used in ways that exclude each other: a structure that shares
  // with nobody and anything else, or an L2 table and data.
  uint64_t Overlaps(const Slot& slot) const;

  static uint64_t Bit(uint64_t cluster) { return uint64_t{1} << (cluster % kPageClusters); }

 private:
  static constexpr uint8_t kWide = 255;
  static constexpr uint64_t kScatteredPages = 1 << 19;  // about 90 MiB
  static constexpr uint64_t kDensePage = 4;             // clusters used of a page, on average

  std::unordered_map<uint64_t, Page> pages_;
  std::unordered_map<uint64_t, uint64_t> wide_;  // counts of 255 and more, by cluster
  Slot* last_ = nullptr;                         // references come in runs
  uint64_t clusters_ = 0;                        // that are referenced
  bool overflowed_ = false;
  Page dropped_;
};

}  // namespace platter::qcow2::check
