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
constexpr std::chrono::microseconds kLook{50};  // from one look whether they are gone to the next
constexpr std::chrono::milliseconds kMoment{1};

void Pause(std::chrono::microseconds time) {
  if (sched::hook) return sched::hook->Yield("wait");
  std::this_thread::sleep_for(time);
}

}  // namespace

void StructureLock::WaitToHold(Pin& pin) {
  while (state_.load() == kAlone) {
    pin = Pin();
    {
      std::unique_lock lock(mutex_);
      changed_.Wait(lock, [&] { return state_.load() != kAlone; });
    }
    pin = pins_.Hold();
  }
}

void StructureLock::WaitToShare() {
  while (state_.load() != kOpen) {
    users_.fetch_sub(1);
    {
      std::unique_lock lock(mutex_);
      changed_.Wait(lock, [&] { return state_.load() == kOpen; });
    }
    users_.fetch_add(1);
  }
}

StructureLock::Exclusive StructureLock::Lock() {
  one_.lock();
  for (auto patience = kPatience; !WaitUntilAlone(patience);
       patience = std::min(2 * patience, kMostPatience)) {
    SetState(kOpen);
    Pause(kMoment);
  }
  return Exclusive(this);
}

// False if somebody did not go.
bool StructureLock::WaitUntilAlone(std::chrono::milliseconds patience) {
  const Clock::time_point limit = Clock::now() + patience;
  auto wait = [&](auto gone) {
    while (!gone()) {
      if (Clock::now() > limit && !sched::hook) return false;
      Pause(kLook);
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
