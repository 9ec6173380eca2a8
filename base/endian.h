// Integers as they lie on disk: byte arrays with a byte order and alignment 1, so that on-disk
// structures can be declared field by field and loaded from any offset.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace platter {

template <std::integral T, std::endian kOrder>
class OnDisk {
 public:
  constexpr OnDisk() = default;
  OnDisk(T value) { *this = value; }  // NOLINT: reads and assigns like the integer it stands for
  OnDisk& operator=(T value) {
    if constexpr (kOrder != std::endian::native) value = Swap(value);
    std::memcpy(raw_, &value, sizeof value);
    return *this;
  }
  operator T() const {  // NOLINT
    T value;
    std::memcpy(&value, raw_, sizeof value);
    if constexpr (kOrder != std::endian::native) value = Swap(value);
    return value;
  }

 private:
  static T Swap(T value) {
    if constexpr (sizeof(T) == 2)
      return static_cast<T>(__builtin_bswap16(static_cast<uint16_t>(value)));
    if constexpr (sizeof(T) == 4)
      return static_cast<T>(__builtin_bswap32(static_cast<uint32_t>(value)));
    if constexpr (sizeof(T) == 8)
      return static_cast<T>(__builtin_bswap64(static_cast<uint64_t>(value)));
  }
  unsigned char raw_[sizeof(T)] = {};
};

using be16 = OnDisk<uint16_t, std::endian::big>;
using be32 = OnDisk<uint32_t, std::endian::big>;
using be64 = OnDisk<uint64_t, std::endian::big>;
using le16 = OnDisk<uint16_t, std::endian::little>;
using le32 = OnDisk<uint32_t, std::endian::little>;
using le64 = OnDisk<uint64_t, std::endian::little>;

static_assert(sizeof(be64) == 8 && alignof(be64) == 1);

}  // namespace platter
