// Mutex and CondVar as everywhere, plus yield points.
//
// The schedule test (tests/schedule) runs a handful of threads one at a time and decides at every
// yield point which goes on. It needs to see each place where threads can be interleaved and each
// place where one waits for another; so Platter's locks are these, and the few calls that matter
// (Hold, Map, Reserve, Store I/O, Publish) name themselves with sched::Yield. Outside that test
// the hook is null and a yield point costs one thread-local load.
#pragma once

#include <condition_variable>
#include <mutex>

namespace platter {

namespace sched {

class Hook {
 public:
  virtual ~Hook() = default;
  // Called by a thread that may be interrupted here, or that waits and will look again after.
  virtual void Yield(const char* where) = 0;
};

extern thread_local Hook* hook;

inline void Yield(const char* where) {
  if (hook) [[unlikely]]
    hook->Yield(where);
}

}  // namespace sched

// Says at each use what it guards and its rank (see docs/ARCHITECTURE.md, "Locks").
class Mutex {
 public:
  void lock() {
    if (!sched::hook) [[likely]]
      return mutex_.lock();
    while (!mutex_.try_lock()) sched::hook->Yield("mutex");
  }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class CondVar {
 public:
  // Waits until `ready()` holds; `lock` is held on entry, during `ready` and on return.
  template <class Ready>
  void Wait(std::unique_lock<Mutex>& lock, Ready ready) {
    if (!sched::hook) [[likely]]
      return cv_.wait(lock, ready);
    while (!ready()) {
      lock.unlock();
      sched::hook->Yield("wait");
      lock.lock();
    }
  }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable_any cv_;
};

}  // namespace platter
