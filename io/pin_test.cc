#include "io/pin.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <vector>

namespace platter {
namespace {

TEST(Pin, WithoutPinsFreedSpaceIsFreeAtOnce) {
  PinSet set;
  EXPECT_TRUE(set.Reached(set.Now()));
}

TEST(Pin, AnOlderPinHoldsFreedSpaceBack) {
  PinSet set;
  std::optional<Pin> pin = set.Hold();
  uint64_t freed = set.Now();
  EXPECT_FALSE(set.Reached(freed));
  EXPECT_FALSE(set.Reached(freed));
  pin.reset();
  EXPECT_TRUE(set.Reached(freed));
}

TEST(Pin, YoungerPinsDoNotHoldItBack) {
  PinSet set;
  std::optional<Pin> old = set.Hold();
  uint64_t freed = set.Now();
  EXPECT_FALSE(set.Reached(freed));  // moves on as far as it can
  Pin young = set.Hold();
  old.reset();
  EXPECT_TRUE(set.Reached(freed)) << "the young pin began after the space was freed";
  EXPECT_FALSE(set.Reached(set.Now()));
}

TEST(Pin, MovesCarryTheHold) {
  PinSet set;
  Pin a = set.Hold();
  uint64_t freed = set.Now();
  Pin b = std::move(a);
  a = Pin();
  EXPECT_FALSE(set.Reached(freed));
  b = set.Hold();  // drops the first hold; the second began in the same epoch or later
  b = Pin();
  EXPECT_TRUE(set.Reached(freed));
}

// Readers look a cell up under a lock, then read it with no lock; a writer unlinks cells, and gives
// their space to another meaning once it is Reached. No reader may see another cell's value.
TEST(PinThreads, NoReaderSeesReusedSpace) {
  constexpr int kReaders = 4, kRounds = 20000;
  PinSet set;
  std::mutex lock;
  struct Cell {
    std::atomic<uint64_t> value;
  };
  std::array<Cell, 64> cells{};
  size_t current = 0;    // guarded by lock, as is:
  uint64_t meaning = 1;  // what the current cell must hold
  cells[0].value = meaning;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0}, reads{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < kReaders; ++i) {
    readers.emplace_back([&] {
      while (!stop) {
        Pin pin = set.Hold();
        size_t at;
        uint64_t expected;
        {
          std::lock_guard guard(lock);
          at = current;
          expected = meaning;
        }
        for (int spin = 0; spin < 20; ++spin) {
          if (cells[at].value.load(std::memory_order_relaxed) != expected) ++wrong;
        }
        ++reads;
      }
    });
  }
  struct Freed {
    size_t cell;
    uint64_t epoch;
  };
  std::vector<Freed> quarantine;
  std::vector<size_t> available;
  for (size_t i = 1; i < cells.size(); ++i) available.push_back(i);
  int reused = 0;
  for (int round = 0; round < kRounds || reads < 100; ++round) {
    std::erase_if(quarantine, [&](Freed freed) {
      if (!set.Reached(freed.epoch)) return false;
      available.push_back(freed.cell);
      ++reused;
      return true;
    });
    if (available.empty()) {
      std::this_thread::yield();
      continue;
    }
    size_t next = available.back();
    available.pop_back();
    size_t old;
    {
      std::lock_guard guard(lock);
      cells[next].value.store(++meaning, std::memory_order_relaxed);
      old = std::exchange(current, next);
    }
    quarantine.push_back({old, set.Now()});
  }
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(reused, 0);
}

}  // namespace
}  // namespace platter
