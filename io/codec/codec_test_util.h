// Data and judges for the codec tests.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/check.h"
#include "base/math.h"

namespace platter::testing {

using Buffer = std::vector<std::byte>;

inline Buffer RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  Buffer bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Words of a small vocabulary: compresses about as well as source text.
inline Buffer TextBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::string> words(400);
  for (std::string& word : words) {
    for (size_t n = 2 + random() % 9; n > 0; --n) word += static_cast<char>('a' + random() % 26);
    word += ' ';
  }
  std::string text;
  while (text.size() < size) text += words[std::min(random() % 400, random() % 400)];
  Buffer bytes(size);
  std::memcpy(bytes.data(), text.data(), size);
  return bytes;
}

// Random bytes that repeat every `period`: matches are at exactly that distance.
inline Buffer PeriodicBytes(size_t size, size_t period, uint64_t seed) {
  Buffer bytes = RandomBytes(size, seed);
  for (size_t i = period; i < size; ++i) bytes[i] = bytes[i - period];
  return bytes;
}

// A mix of runs, copies from anywhere before, counters and noise.
inline Buffer MixedBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  Buffer bytes;
  while (bytes.size() < size) {
    size_t length = 1 + random() % 700;
    uint64_t value = random();
    size_t back = bytes.empty() ? 0 : 1 + random() % bytes.size();
    for (size_t i = 0; i < length; ++i) {
      switch (value % 4) {
        case 0: bytes.push_back(static_cast<std::byte>(value >> 8)); break;
        case 1: bytes.push_back(static_cast<std::byte>(random())); break;
        case 2: bytes.push_back(static_cast<std::byte>(i / 4)); break;
        default: bytes.push_back(back ? bytes[bytes.size() - back] : std::byte{7}); break;
      }
    }
  }
  bytes.resize(size);
  return bytes;
}

// Memory that ends at a page that cannot be touched: a byte read or written behind it is a fault,
// also in assembly that sanitizers do not see.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t size) : size_(size), mapped_(RoundUp(size, kPage) + kPage) {
    void* at = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    base_ = static_cast<std::byte*>(at);
    CHECK(mprotect(base_ + mapped_ - kPage, kPage, PROT_NONE) == 0);
  }
  explicit GuardedBuffer(ConstBytes from) : GuardedBuffer(from.size()) {
    if (!from.empty()) std::memcpy(bytes().data(), from.data(), from.size());
  }
  GuardedBuffer(const GuardedBuffer&) = delete;
  ~GuardedBuffer() { munmap(base_, mapped_); }

  Bytes bytes() { return {base_ + mapped_ - kPage - size_, size_}; }

 private:
  static constexpr size_t kPage = 4096;
  size_t size_, mapped_;
  std::byte* base_;
};

}  // namespace platter::testing
