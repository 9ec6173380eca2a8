#include "cow/structure_lock.h"

#include <chrono>
#include <mutex>

namespace platter {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kPatience = std::chrono::milliseconds(100);
constexpr auto kMoment = std::chrono::microseconds(50);

void Pause() {
  if (sched::hook) return sched::hook->Yield("wait");
  std::this_thread::sleep_for(kMoment);
}

}  // namespace

void StructureLock::WaitToHold(Pin& pin) {
  while (state_.load() == kAlone && !Mine()) {
    pin = Pin();
    {
      std::unique_lock lock(mutex_);
      changed_.Wait(lock, [&] { return state_.load() != kAlone; });
    }
    pin = pins_.Hold();
  }
}

void StructureLock::WaitToShare() {
  while (state_.load() != kOpen && !Mine()) {
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
  owner_ = std::this_thread::get_id();
  while (!WaitUntilAlone()) {
    SetState(kOpen);
    Pause();
  }
  return Exclusive(this);
}

// False if somebody did not go.
bool StructureLock::WaitUntilAlone() {
  const Clock::time_point limit = Clock::now() + kPatience;
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
  owner_ = std::thread::id();
  SetState(kOpen);
  one_.unlock();
}

}  // namespace platter
