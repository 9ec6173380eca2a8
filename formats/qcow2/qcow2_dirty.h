// DirtyPages: the bits of one bitmap in memory, as far as somebody has looked at them. A page is
// what one cluster of the bitmap holds, and stands for a run of guest bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"

namespace platter::qcow2 {

// Runs of bits that are set among the first `count` of `bits`: `visit` gets first and number, until
// it answers false. A byte holds the lowest bit first. False if it was ended so.
bool VisitBits(ConstBytes bits, uint64_t count,
               const std::function<bool(uint64_t first, uint64_t number)>& visit);
void SetBits(Bytes bits, uint64_t first, uint64_t number);
// All bits from `first` on become zero.
void ClearBits(Bytes bits, uint64_t first);

// Not thread-safe: the owner's lock guards it.
class DirtyPages {
 public:
  DirtyPages(uint32_t granularity_bits, uint64_t page_bytes)
      : granularity_bits_(granularity_bits), page_bytes_(page_bytes) {}

  struct Page {
    std::vector<std::byte> bits;  // empty: all are set
    bool changed = false;         // since it was loaded
  };

  // Guest bytes that page `index` stands for.
  Range GuestOf(uint64_t index) const { return {index * span(), span()}; }
  uint64_t span() const { return page_bytes_ * 8 << granularity_bits_; }

  // The first page that `guest` touches and that was not loaded.
  std::optional<uint64_t> Missing(Range guest) const;
  // Null: it was not loaded.
  const Page* Find(uint64_t index) const;
  void Load(uint64_t index, std::vector<std::byte> bits) { pages_[index] = {std::move(bits)}; }
  // All of it is dirty, whatever it was.
  void LoadFull(uint64_t index) { pages_[index] = {{}, /*changed=*/true}; }

  // All granules that `guest` touches are known to be dirty.
  bool Covers(Range guest) const;
  // They are, from now on. All its pages are loaded.
  void Set(Range guest);

  const std::map<uint64_t, Page>& pages() const { return pages_; }
  void MarkStored() {
    for (auto& [index, page] : pages_) page.changed = false;
  }

 private:
  // Bits of page `index` that `guest` touches.
  Range BitsOf(uint64_t index, Range guest) const;

  const uint32_t granularity_bits_;
  const uint64_t page_bytes_;
  std::map<uint64_t, Page> pages_;
};

}  // namespace platter::qcow2
