#include "cow/structure_lock.h"

#include <algorithm>
#include <mutex>
#include <thread>

namespace platter {

namespace {

using Clock = std::chrono::steady_clock;
// How long the others are waited for, the first time and at most. It grows, so that requests which
// take long, one after the other, cannot keep the lock from somebody for ever.
constexpr std::chrono::milliseconds kPatience{20}, kMostPatience{2000};

// From one look at the others to the next.
void Pause() {
  if (sched::hook) return sched::hook->Yield("wait");
  std::this_thread::sleep_for(std::chrono::microseconds(50));
}

}  // namespace

void StructureLock::WaitToHold(Pin& pin) {
  waiting_.fetch_add(1);
  while (state_.load() == kAlone) {
    pin = Pin();
    {
      std::unique_lock lock(mutex_);
      changed_.Wait(lock, [&] { return state_.load() != kAlone; });
    }
    pin = pins_.Hold();
  }
  waiting_.fetch_sub(1);
}

void StructureLock::WaitToShare() {
  waiting_.fetch_add(1);
  while (state_.load() != kOpen) {
    users_.fetch_sub(1);
    {
      std::unique_lock lock(mutex_);
      changed_.Wait(lock, [&] { return state_.load() == kOpen; });
    }
    users_.fetch_add(1);
  }
  waiting_.fetch_sub(1);
}

StructureLock::Exclusive StructureLock::Lock() {
  one_.lock();
  for (auto patience = kPatience;; patience = std::min(2 * patience, kMostPatience)) {
    // Who was kept out comes in first: changes one after the other keep nobody waiting for all.
    while (waiting_.load() > 0) Pause();
    if (WaitUntilAlone(patience)) return Exclusive(this);
    SetState(kOpen);
  }
}

// False if somebody did not go.
bool StructureLock::WaitUntilAlone(std::chrono::milliseconds patience) {
  const Clock::time_point limit = Clock::now() + patience;
  auto wait = [&](auto gone) {
    while (!gone()) {
      if (Clock::now() > limit && !sched::hook) return false;
      Pause();
    }
    return true;
  };
  SetState(kClosing);
  if (!wait([&] { return users_.load() == 0; })) return false;
  SetState(kAlone);
  const uint64_t epoch = pins_.Now();
  return wait([&] { return pins_.Reached(epoch); });
}

void StructureLock::SetState(State state) {
  {
    std::lock_guard lock(mutex_);
    state_ = state;
  }
  changed_.NotifyAll();
}

void StructureLock::Unlock() {
  SetState(kOpen);
  one_.unlock();
}

}  // namespace platter
