#include "io/range_lock.h"

namespace platter {

RangeLock::Guard RangeLock::Lock(Range range) {
  std::unique_lock lock(mutex_);
  auto mine = entries_.insert(entries_.end(), range);
  changed_.Wait(lock, [&] {
    for (auto it = entries_.begin(); it != mine; ++it) {
      if (it->Overlaps(range)) return false;
    }
    return true;
  });
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
