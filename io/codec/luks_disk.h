// LUKS1 on disk: "LUKS1 On-Disk Format Specification" 1.2.3, section 2.1 (figure 1: the header;
// figure 2: a key slot). Numbers are big-endian, offsets are in 512-byte sectors from the header.
#pragma once

#include <array>
#include <type_traits>

#include "base/endian.h"

namespace platter::internal {

struct LuksSlotDisk {
  be32 state;  // kLuksSlotActive or kLuksSlotUnused
  be32 iterations;
  std::array<std::byte, 32> salt;
  be32 material;  // sector
  be32 stripes;
};
static_assert(sizeof(LuksSlotDisk) == 48 && alignof(LuksSlotDisk) == 1);

struct LuksHeaderDisk {
  std::array<std::byte, 6> magic;
  be16 version;
  std::array<char, 32> cipher_name;
  std::array<char, 32> cipher_mode;
  std::array<char, 32> hash;
  be32 payload;    // sector
  be32 key_bytes;  // of the master key
  std::array<std::byte, 20> digest;
  std::array<std::byte, 32> digest_salt;
  be32 digest_iterations;
  std::array<char, 40> uuid;
  std::array<LuksSlotDisk, 8> slots;
};
static_assert(sizeof(LuksHeaderDisk) == 592 && alignof(LuksHeaderDisk) == 1);

inline constexpr std::array<std::byte, 6> kLuksMagic = {std::byte{'L'},  std::byte{'U'},
                                                        std::byte{'K'},  std::byte{'S'},
                                                        std::byte{0xba}, std::byte{0xbe}};
inline constexpr uint32_t kLuksSlotActive = 0x00ac71f3;
inline constexpr uint32_t kLuksSlotUnused = 0x0000dead;
inline constexpr uint32_t kLuksStripes = 4000;
inline constexpr uint32_t kLuksSector = 512;
// Key material starts on multiples of this (section 2.4's LUKS_ALIGN_KEYSLOTS).
inline constexpr uint32_t kLuksSlotAlign = 4096;

}  // namespace platter::internal
