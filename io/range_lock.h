// RangeLock: at most one holder for any byte. Reservations and discards of a layer take it, so
// that two writers never reserve their own space for one cluster (the later one's whole-cluster
// fill would lose the earlier one's acknowledged bytes).
#pragma once

#include <cstdint>
#include <list>
#include <thread>
#include <utility>

#include "base/range.h"
#include "base/sync.h"

namespace platter {

class RangeLock {
  struct Entry {
    Range range;
    std::thread::id thread;  // that asked for it
    bool held;
  };

 public:
  class Guard {
   public:
    Guard() = default;
    Guard(Guard&& other) noexcept
        : owner_(std::exchange(other.owner_, nullptr)), entry_(other.entry_) {}
    Guard& operator=(Guard&& other) noexcept {
      Release();
      owner_ = std::exchange(other.owner_, nullptr);
      entry_ = other.entry_;
      return *this;
    }
    ~Guard() { Release(); }
    // Lets go now; nothing where nothing is held.
    void Release();

   private:
    friend class RangeLock;
    RangeLock* owner_ = nullptr;
    std::list<Entry>::iterator entry_;
  };

  // Waits until no holder overlaps `range`. First come, first served among those that overlap.
  //
  // A thread that holds a Guard already may ask for ranges behind all that it holds, and then goes
  // before those who only wait: one of them may be waiting for what this thread holds. So threads
  // that hold something wait for nothing but holders, and each for one further behind: no cycle.
  // An empty range overlaps what it lies strictly inside of.
  Guard Lock(Range range);

 private:
  bool MayGoLocked(std::list<Entry>::const_iterator mine) const;

  Mutex mutex_;  // guards entries_; a leaf: nothing else is locked under it
  CondVar changed_;
  std::list<Entry> entries_;  // held ranges and waiting ones, in order of arrival
};

}  // namespace platter
