#include "io/unit_cache.h"

#include <algorithm>
#include <mutex>

namespace platter {

UnitCache::Unit UnitCache::Find(const Extent& extent, const Pin& pin) {
  std::lock_guard lock(mutex_);
  auto found =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.Holds(extent); });
  if (found == entries_.end() || pin.epoch() > found->epoch) return nullptr;
  std::rotate(found, found + 1, entries_.end());
  return entries_.back().unit;
}

void UnitCache::Put(const Extent& extent, const Pin& pin, Unit unit) {
  if (unit->size() > kMostBytes) return;
  std::lock_guard lock(mutex_);
  auto drop = [&](std::vector<Entry>::iterator entry) {
    bytes_ -= entry->unit->size();
    entries_.erase(entry);
  };
  auto old =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.Holds(extent); });
  if (old != entries_.end()) {
    // One kept under a later Pin may be another unit already.
    if (old->epoch > pin.epoch()) return;
    drop(old);
  }
  bytes_ += unit->size();
  entries_.push_back({extent.store, extent.host, pin.epoch(), std::move(unit)});
  while (entries_.size() > kMostUnits || bytes_ > kMostBytes) drop(entries_.begin());
}

}  // namespace platter
