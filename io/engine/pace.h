// What keeps the workers of one copy in step: an order, and a speed limit. Inside the engine.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <utility>

#include "base/sync.h"

namespace platter {

// Lets numbered visitors through one at a time, 0 first, whatever order they come in.
class Turnstile {
 public:
  class Turn {
   public:
    Turn() = default;
    Turn(Turn&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)) {}
    Turn& operator=(Turn&& other) noexcept {
      Leave();
      owner_ = std::exchange(other.owner_, nullptr);
      return *this;
    }
    ~Turn() { Leave(); }
    // False if there is no turn: not entered, left, or turned away.
    explicit operator bool() const { return owner_ != nullptr; }
    void Leave() {
      if (owner_) owner_->Next();
      owner_ = nullptr;
    }

   private:
    friend class Turnstile;
    Turnstile* owner_ = nullptr;
  };

  // Waits until every number before `number` has come and left.
  Turn Enter(uint64_t number) {
    std::unique_lock lock(mutex_);
    changed_.Wait(lock, [&] { return closed_ || current_ == number; });
    Turn turn;
    if (!closed_) turn.owner_ = this;
    return turn;
  }

  // Whoever waits, now or later, is turned away.
  void Close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }

 private:
  void Next() {
    std::lock_guard lock(mutex_);
    ++current_;
    changed_.NotifyAll();
  }

  Mutex mutex_;  // guards the rest; a leaf
  CondVar changed_;
  uint64_t current_ = 0;
  bool closed_ = false;
};

// Spreads bytes over time: at most a quarter of a second's worth at once.
class RateLimit {
 public:
  explicit RateLimit(uint64_t bytes_per_second)
      : rate_(static_cast<double>(bytes_per_second)), free_at_(Clock::now()) {}

  // Waits until `bytes` may be moved, or `stop` is set.
  void Take(uint64_t bytes, const std::atomic<bool>& stop) {
    if (rate_ == 0) return;
    Clock::time_point mine;
    {
      std::lock_guard lock(mutex_);
      mine = std::max(free_at_, Clock::now() - std::chrono::milliseconds(250));
      free_at_ = mine + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(static_cast<double>(bytes) / rate_));
    }
    while (!stop && Clock::now() < mine) {
      std::this_thread::sleep_until(std::min(mine, Clock::now() + std::chrono::milliseconds(50)));
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  const double rate_;  // bytes a second; 0: none
  Mutex mutex_;        // guards free_at_; a leaf
  Clock::time_point free_at_;
};

}  // namespace platter
