// A run of bytes: where it starts and how long it is.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/math.h"

namespace platter {

struct Range {
  uint64_t offset = 0;  // bytes
  uint64_t length = 0;  // bytes

  constexpr uint64_t end() const { return offset + length; }
  constexpr bool empty() const { return length == 0; }
  constexpr bool Contains(uint64_t at) const { return at >= offset && at - offset < length; }
  constexpr bool Overlaps(Range other) const {
    return offset < other.end() && other.offset < end();
  }
  // The smallest range that starts and ends on multiples of `unit` and holds this one.
  constexpr Range Outward(uint64_t unit) const {
    return FromTo(RoundDown(offset, unit), RoundUp(end(), unit));
  }
  // The largest range that starts and ends on multiples of `unit` inside this one; maybe empty.
  constexpr Range Inward(uint64_t unit) const {
    uint64_t first = RoundUp(offset, unit), last = RoundDown(end(), unit);
    return FromTo(first, std::max(first, last));
  }
  constexpr Range Intersect(Range other) const {
    uint64_t first = std::max(offset, other.offset), last = std::min(end(), other.end());
    return FromTo(first, std::max(first, last));
  }
  static constexpr Range FromTo(uint64_t begin, uint64_t end) { return Range{begin, end - begin}; }

  friend constexpr bool operator==(Range, Range) = default;
};

}  // namespace platter
