// Spans of bytes, and the one way from bytes to an on-disk structure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/math.h"

namespace platter {

using Bytes = std::span<std::byte>;
using ConstBytes = std::span<const std::byte>;

// A copy of the T that starts at `offset`, or nothing where `from` ends before it does. T is a
// struct of OnDisk integers and bytes (alignment 1).
template <class T>
std::optional<T> LoadAt(ConstBytes from, uint64_t offset) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) == 1);
  if (!FitsIn(offset, sizeof(T), from.size())) return std::nullopt;
  T value;
  std::memcpy(&value, from.data() + offset, sizeof value);
  return value;
}

// Writes `value` at `offset`; the caller made the room.
template <class T>
void StoreAt(Bytes into, uint64_t offset, const T& value) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) == 1);
  std::memcpy(into.subspan(offset, sizeof value).data(), &value, sizeof value);
}

template <class T>
ConstBytes AsBytes(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_bytes(std::span(&value, 1));
}

inline ConstBytes AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline std::string_view AsText(ConstBytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// True if every byte is zero (an empty span too). Fast: vectorized, stops at the first non-zero.
bool IsZero(ConstBytes bytes);

// `text` made safe to print on a terminal: control characters and invalid UTF-8 become \xNN, so
// that a name inside a hostile image cannot drive the user's terminal. At most `limit` bytes in.
std::string Printable(std::string_view text, size_t limit = 256);

}  // namespace platter
