#include "nbd/memory.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "base/check.h"
#include "base/sync.h"

namespace platter::nbd {
namespace {

constexpr size_t kSmallest = 4 * kKiB;  // and the alignment
#ifdef PLATTER_ASAN
constexpr size_t kMostKept = 0;  // so that whoever uses memory after its end is caught
#else
constexpr size_t kMostKept = 16 * kMiB;  // bytes, of the process
#endif
constexpr size_t kLargest = 16 * kMiB;  // larger ones are not kept

// Free memory, in sizes that are powers of two.
class Pool {
 public:
  static size_t RoundedUp(size_t size) { return std::bit_ceil(std::max(size, kSmallest)); }

  std::byte* Take(size_t rounded) {
    if (rounded <= kLargest) {
      std::scoped_lock lock(mutex_);
      std::vector<std::byte*>& free = FreeLocked(rounded);
      if (!free.empty()) {
        std::byte* memory = free.back();
        free.pop_back();
        kept_ -= rounded;
        return memory;
      }
    }
    // Sizes are bounded by the protocol and the window, so failure is fatal.
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(kSmallest, rounded));
    CHECK(memory != nullptr);
    return memory;
  }

  void Give(std::byte* memory, size_t rounded) {
    {
      std::scoped_lock lock(mutex_);
      if (rounded <= kLargest && kept_ + rounded <= kMostKept) {
        FreeLocked(rounded).push_back(memory);
        kept_ += rounded;
        return;
      }
    }
    std::free(memory);
  }

 private:
  std::vector<std::byte*>& FreeLocked(size_t rounded) {
    return free_[std::bit_width(rounded / kSmallest) - 1];
  }

  Mutex mutex_;  // guards everything below; a leaf
  std::array<std::vector<std::byte*>, std::bit_width(kLargest / kSmallest)> free_;
  size_t kept_ = 0;  // bytes
};

// Never destroyed: threads that outlive main may still give back.
Pool& ThePool() {
  static Pool& pool = *new Pool;
  return pool;
}

}  // namespace

Memory::Memory(size_t size)
    : data_(size > 0 ? ThePool().Take(Pool::RoundedUp(size)) : nullptr), size_(size) {}

Memory::~Memory() {
  if (data_) ThePool().Give(data_, Pool::RoundedUp(size_));
}

}  // namespace platter::nbd
