#include "io/range_lock.h"

#include <algorithm>

namespace platter {

bool RangeLock::MayGoLocked(std::list<Entry>::const_iterator mine) const {
  bool holder = std::ranges::any_of(
      entries_, [&](const Entry& entry) { return entry.held && entry.thread == mine->thread; });
  bool earlier = true;
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it == mine) {
      earlier = false;
    } else if (it->range.Overlaps(mine->range) && (it->held || (earlier && !holder))) {
      return false;
    }
  }
  return true;
}

RangeLock::Guard RangeLock::Lock(Range range) {
  std::unique_lock lock(mutex_);
  auto mine = entries_.insert(entries_.end(), {range, std::this_thread::get_id(), false});
  changed_.Wait(lock, [&] { return MayGoLocked(mine); });
  mine->held = true;
  Guard guard;
  guard.owner_ = this;
  guard.entry_ = mine;
  return guard;
}

void RangeLock::Guard::Release() {
  if (!owner_) return;
  {
    std::lock_guard lock(owner_->mutex_);
    owner_->entries_.erase(entry_);
  }
  owner_->changed_.NotifyAll();
  owner_ = nullptr;
}

}  // namespace platter
