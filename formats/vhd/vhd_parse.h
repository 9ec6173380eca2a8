// From bytes to checked values and back; no I/O. Any bytes go in.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "formats/new_identity.h"
#include "formats/vhd/vhd_disk.h"

namespace platter::vhd {

struct Geometry {
  uint32_t cylinders = 0, heads = 0, sectors = 0;
  uint64_t bytes() const { return uint64_t{cylinders} * heads * sectors * kSector; }
  friend bool operator==(const Geometry&, const Geometry&) = default;
};
// Of a disk of `bytes`: never larger than the disk, and kMostGeometry for all above it.
// Source: the specification's appendix "CHS Calculation".
Geometry GeometryOf(uint64_t bytes);
constexpr uint64_t kMostGeometry = uint64_t{65535} * 16 * 255 * kSector;

struct Footer {
  uint32_t features = kReservedBit;
  uint64_t data_offset = kNoOffset;
  uint32_t timestamp = 0;
  std::string creator, host_os;  // four bytes each
  uint32_t creator_version = 0;
  uint64_t original_size = 0, current_size = 0;
  Geometry geometry;
  DiskType type = DiskType::kFixed;
  ImageId id{};
  uint8_t saved_state = 0;
  std::array<uint8_t, 427> reserved{};

  bool temporary() const { return (features & kTemporary) != 0; }
};

// `bytes` are kSector of them, or kShortFooter. kCorrupt (cookie, checksum), kUnsupported (version,
// type).
Result<Footer> ParseFooter(ConstBytes bytes);
DiskFooter EncodeFooter(const Footer& footer);
bool HasFooterCookie(ConstBytes bytes);

// Which of its two sizes a disk has. Virtual PC and its server, and QEMU's first VHDs, show their
// guests what the geometry says; everybody else the current size, as the specification has it.
struct SizeChoice {
  uint64_t bytes = 0;
  bool from_geometry = false;
};
SizeChoice ChooseSize(const Footer& footer, std::optional<bool> want_geometry);

struct Locator {
  std::string code;  // four bytes
  Range data;        // in the file
};
struct Header {
  uint64_t table_offset = 0;
  uint32_t table_entries = 0;
  uint32_t block_size = 0;  // bytes, a power of two from kLeastBlock to kMostBlock
  ImageId parent_id{};
  uint32_t parent_timestamp = 0;
  std::string parent_name;  // UTF-8
  std::vector<Locator> locators{};

  uint32_t bitmap_size() const {
    return static_cast<uint32_t>(RoundUp(block_size / kSector / 8, kSector));
  }
  uint64_t unit() const { return uint64_t{bitmap_size()} + block_size; }
  Range table() const { return {table_offset, RoundUp(uint64_t{table_entries} * 4, kSector)}; }
};
constexpr uint32_t kLeastBlock = 4096, kMostBlock = 256u << 20;
constexpr uint32_t kMostLocator = 64 * 1024;  // bytes: no path is longer

// `bytes` are sizeof(DiskHeader). Says nothing about where the file ends.
Result<Header> ParseHeader(ConstBytes bytes);
// One's complement of the sum of all bytes but the four at `at`.
uint32_t ChecksumOf(ConstBytes bytes, size_t at);
void SealHeader(DiskHeader& header);  // sets its checksum

// The path that a locator's data holds, as a path of this system, or nothing where it has none
// there.
std::optional<std::string> PathOfLocator(std::string_view code, ConstBytes data);

struct Batmap {
  Range map;  // in the file, whole sectors
  uint32_t checksum = 0;
};
// Nothing if `bytes` (at least sizeof(DiskBatmap)) are not one, or its map is too short for
// `blocks`.
std::optional<Batmap> ParseBatmap(ConstBytes bytes, uint64_t blocks);

// Bit `index`, the highest of each byte first.
inline bool BitAt(ConstBytes bits, uint64_t index) {
  return (std::to_integer<uint8_t>(bits[index / 8]) >> (7 - index % 8) & 1) != 0;
}
// How many bits from `first` on, at most up to `end`, are like the one at `first`.
uint64_t RunOfBits(ConstBytes bits, uint64_t first, uint64_t end);
void SetBits(Bytes bits, uint64_t first, uint64_t end, bool value);

}  // namespace platter::vhd
