// A seeded generator that gives the same numbers everywhere.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace platter::model {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // SplitMix64 (Steele, Lea and Flood, 2014).
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // In [0, limit); limit > 0.
  uint64_t Below(uint64_t limit) { return Next() % limit; }
  // In [low, high].
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  bool OneIn(uint64_t n) { return Below(n) == 0; }

  void Fill(Bytes bytes) {
    for (size_t i = 0; i < bytes.size(); i += 8) {
      uint64_t value = Next();
      std::memcpy(&bytes[i], &value, std::min<size_t>(8, bytes.size() - i));
    }
  }

 private:
  uint64_t state_;
};

}  // namespace platter::model
