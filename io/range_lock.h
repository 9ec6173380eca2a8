// RangeLock: at most one holder for any byte. Reservations and discards of a layer take it, so
// that two writers never reserve their own space for one cluster (the later one's whole-cluster
// fill would lose the earlier one's acknowledged bytes).
#pragma once

#include <cstdint>
#include <list>
#include <utility>

#include "base/range.h"
#include "base/sync.h"

namespace platter {

class RangeLock {
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
    std::list<Range>::iterator entry_;
  };

  // Waits until no holder overlaps `range`. First come, first served among those that overlap.
  // A thread that holds a Guard of this lock must not ask for a second one: two such threads could
  // wait for each other. An empty range overlaps what it lies strictly inside of.
  Guard Lock(Range range);

 private:
  // Held ranges and waiting ones in order of arrival: one is granted when nothing that arrived
  // before it overlaps it.
  Mutex mutex_;  // guards entries_; a leaf: nothing else is locked under it
  CondVar changed_;
  std::list<Range> entries_;
};

}  // namespace platter
