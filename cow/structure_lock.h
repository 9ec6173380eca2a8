// StructureLock: guest operations share it, changes of structure (snapshots, bitmaps, resizing,
// commit) have it alone.
//
// Two kinds of sharing, since one is taken inside the other: a Reservation reads its fill, which
// takes a Pin. So whoever wants to be alone first keeps new reservations (and discards and flushes)
// away and waits for those that there are to end; then it keeps new Pins away, and waits for those.
//
// That order covers what the engine does for one request. A copy may hold one reservation and ask
// for the next, or a Pin, and ask for another: then nobody goes on. So the wait is limited; if it
// was in vain, all are let in for a moment, and it begins again.
//
// To share costs two changes of one counter and a look at a flag.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <utility>

#include "base/sync.h"
#include "io/pin.h"

namespace platter {

class StructureLock {
 public:
  // What a guest operation other than reading holds. Empty: nothing.
  class Shared {
   public:
    Shared() = default;
    Shared(Shared&& other) noexcept : lock_(std::exchange(other.lock_, nullptr)) {}
    Shared& operator=(Shared&&) = delete;
    ~Shared() {
      if (lock_) lock_->users_.fetch_sub(1);
    }

   private:
    friend class StructureLock;
    explicit Shared(StructureLock* lock) : lock_(lock) {}
    StructureLock* lock_ = nullptr;
  };

  class Exclusive {
   public:
    Exclusive() = default;
    Exclusive(Exclusive&& other) noexcept : lock_(std::exchange(other.lock_, nullptr)) {}
    Exclusive& operator=(Exclusive&&) = delete;
    ~Exclusive() {
      if (lock_) lock_->Unlock();
    }

   private:
    friend class StructureLock;
    explicit Exclusive(StructureLock* lock) : lock_(lock) {}
    StructureLock* lock_ = nullptr;
  };

  // Both wait while somebody has the lock alone, or is about to: who has it does not ask.
  Pin Hold() {
    Pin pin = pins_.Hold();
    if (state_.load() == kAlone) [[unlikely]]
      WaitToHold(pin);
    return pin;
  }
  Shared Share() {
    users_.fetch_add(1);
    if (state_.load() != kOpen) [[unlikely]]
      WaitToShare();
    return Shared(this);
  }

  // Waits for all others to be gone. The caller holds no Pin and no Shared, does not ask twice, and
  // drops the result on the same thread.
  Exclusive Lock();

 private:
  enum State : int {
    kOpen,
    kClosing,  // no new Shared
    kAlone,    // no new Pins either
  };

  void WaitToHold(Pin& pin);
  void WaitToShare();
  bool WaitUntilAlone(std::chrono::milliseconds patience);
  void SetState(State state);
  void Unlock();

  PinSet pins_;
  std::atomic<int64_t> users_{0};
  std::atomic<State> state_{kOpen};
  Mutex one_;        // held by who has it alone, or is about to; before everything else
  Mutex mutex_;      // for changed_; a leaf
  CondVar changed_;  // state_
};

}  // namespace platter
