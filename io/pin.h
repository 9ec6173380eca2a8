// Pins and quarantine: freed host space is not reused while a reader may still be looking at it.
//
// A reader that mapped a cluster reads it with no lock held. If the cluster is freed and given to
// someone else meanwhile, the reader would see another cluster's data. So every reader holds a Pin
// from before its Map until its last host access, and freed space carries the epoch in which the
// last reference to it was dropped; it may be reused once PinSet::Reached(epoch).
//
// Two counters, as in sleepable RCU: a Pin counts in the parity of the epoch in which it began; the
// epoch may advance when the counter of the other parity is zero. Space freed in epoch e is safe in
// epoch e + 2, when every Pin of e and before is gone.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "base/sync.h"

namespace platter {

class Pin;

class PinSet {
 public:
  PinSet() = default;
  PinSet(const PinSet&) = delete;
  PinSet& operator=(const PinSet&) = delete;

  // Any thread.
  Pin Hold();

  // The epoch to remember with space that is freed now (after it was unlinked from the tables).
  uint64_t Now() const { return epoch_.load(); }

  // True once no Pin from `epoch` or before can exist. Tries to advance; never waits. Any thread.
  bool Reached(uint64_t epoch);

 private:
  friend class Pin;
  std::atomic<uint64_t> epoch_{2};
  std::atomic<int64_t> active_[2]{};
};

// Move-only; an empty Pin (of a layer that never frees anything) holds nothing.
class Pin {
 public:
  Pin() = default;
  Pin(Pin&& other) noexcept
      : first_(std::exchange(other.first_, {})), second_(std::exchange(other.second_, {})) {}
  Pin& operator=(Pin&& other) noexcept {
    Release();
    first_ = std::exchange(other.first_, {});
    second_ = std::exchange(other.second_, {});
    return *this;
  }
  ~Pin() { Release(); }

  // Holds what both hold, each of one set at most; the epoch is that of `first`.
  static Pin Both(Pin first, Pin second) {
    first.second_ = std::exchange(second.first_, {});
    return first;
  }

  // In which it began; an empty Pin's is before all others.
  uint64_t epoch() const { return first_.epoch; }

 private:
  friend class PinSet;
  struct Hold {
    PinSet* set = nullptr;
    uint64_t epoch = 0;
  };
  Pin(PinSet* set, uint64_t epoch) : first_{set, epoch} {}
  void Release() {
    for (Hold* hold : {&first_, &second_}) {
      if (hold->set) hold->set->active_[hold->epoch & 1].fetch_sub(1);
      hold->set = nullptr;
    }
  }

  Hold first_, second_;
};

inline Pin PinSet::Hold() {
  while (true) {
    uint64_t epoch = epoch_.load();
    sched::Yield("hold");
    active_[epoch & 1].fetch_add(1);
    // Counted in a parity that is no longer current: the epoch may have moved on without us.
    if (epoch_.load() == epoch) return Pin(this, epoch);
    active_[epoch & 1].fetch_sub(1);
  }
}

inline bool PinSet::Reached(uint64_t epoch) {
  for (uint64_t now = epoch_.load(); now < epoch + 2; now = epoch_.load()) {
    if (active_[(now + 1) & 1].load() != 0) return false;
    epoch_.compare_exchange_strong(now, now + 1);
  }
  return true;
}

}  // namespace platter
