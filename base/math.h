// Arithmetic on sizes and offsets that come from images: every sum and product that could wrap is
// asked for by name.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>

namespace platter {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kGiB = 1024 * kMiB;
constexpr uint64_t kTiB = 1024 * kGiB;

// `unit` is any positive number, a power of two or not.
constexpr uint64_t RoundDown(uint64_t value, uint64_t unit) { return value - value % unit; }
// The caller knows that the result fits (guest offsets are below 2^63).
constexpr uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return RoundDown(value + unit - 1, unit);
}
constexpr uint64_t DivideUp(uint64_t value, uint64_t unit) {
  return value / unit + (value % unit != 0);
}
constexpr bool IsAligned(uint64_t value, uint64_t unit) { return value % unit == 0; }

constexpr std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}
constexpr std::optional<uint64_t> CheckedMultiply(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// True if [offset, offset + length) lies inside [0, limit), computed without wrapping.
constexpr bool FitsIn(uint64_t offset, uint64_t length, uint64_t limit) {
  return offset <= limit && length <= limit - offset;
}

}  // namespace platter
