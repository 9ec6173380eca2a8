#include "formats/qcow2/qcow2_refmap.h"

#include <algorithm>
#include <bit>

namespace platter::qcow2::check {

RefMap::Page& RefMap::Add(uint64_t cluster, Use use, uint64_t weight) {
  uint64_t number = cluster / kPageClusters;
  if (last_ == nullptr || last_->first != number) {
    auto at = pages_.find(number);
    if (at == pages_.end()) {
      overflowed_ |= pages_.size() >= kScatteredPages && clusters_ < pages_.size() * kDensePage;
      if (overflowed_) return dropped_;
      at = pages_.try_emplace(number).first;
    }
    last_ = &*at;
  }
  Page& page = last_->second;
  uint8_t& count = page.count[cluster % kPageClusters];
  clusters_ += count == 0;
  if (count != kWide && weight < kWide && count + weight < kWide) {
    count = static_cast<uint8_t>(count + weight);
  } else {
    uint64_t& wide = wide_[cluster];
    if (count != kWide) wide = count;
    count = kWide;
    if (__builtin_add_overflow(wide, weight, &wide)) wide = ~uint64_t{0};
  }
  uint64_t& mask = use == Use::kSingle ? page.single : use == Use::kTable ? page.table : page.data;
  mask |= Bit(cluster);
  return page;
}

uint64_t RefMap::Count(uint64_t cluster) const {
  auto at = pages_.find(cluster / kPageClusters);
  return at == pages_.end() ? 0 : Count(*at, cluster % kPageClusters);
}

std::vector<RefMap::Slot*> RefMap::Sorted() {
  std::vector<Slot*> slots;
  slots.reserve(pages_.size());
  for (Slot& slot : pages_) slots.push_back(&slot);
  std::sort(slots.begin(), slots.end(),
            [](const Slot* a, const Slot* b) { return a->first < b->first; });
  return slots;
}

uint64_t RefMap::Overlaps(const Slot& slot) const {
  const Page& page = slot.second;
  uint64_t overlaps = (page.table & page.data) | (page.single & (page.table | page.data));
  for (uint64_t rest = page.single & ~overlaps; rest != 0; rest &= rest - 1) {
    unsigned index = static_cast<unsigned>(std::countr_zero(rest));
    if (Count(slot, index) > 1) overlaps |= uint64_t{1} << index;
  }
  return overlaps;
}

}  // namespace platter::qcow2::check
