// VHD as it lies on disk: structures, nothing else. All integers big endian.
// Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (2006); section
// names below are its own. The batmap is Xen's addition, as its tools write it.
#pragma once

#include <cstdint>

#include "base/endian.h"

namespace platter::vhd {

constexpr uint64_t kSector = 512;  // bytes; the unit of the format whatever the guest sees

// "Hard Disk Footer Format".
struct DiskFooter {
  char cookie[8];
  be32 features, version;
  be64 data_offset;  // of the dynamic disk header; kNoOffset in fixed disks
  be32 timestamp;    // seconds since kEpoch
  char creator[4];
  be32 creator_version;
  char host_os[4];
  be64 original_size, current_size;
  be16 cylinders;
  uint8_t heads, sectors_per_track;
  be32 type, checksum;
  uint8_t id[16];
  uint8_t saved_state;
  uint8_t reserved[427];
};
static_assert(sizeof(DiskFooter) == kSector && alignof(DiskFooter) == 1);
constexpr char kFooterCookie[] = "conectix";
// Virtual PC before 2004 left the last byte out at the end of the file.
constexpr uint64_t kShortFooter = 511;
constexpr uint64_t kNoOffset = 0xffffffffffffffff;
constexpr uint32_t kVersion = 0x00010000;             // of footer and header; the upper half counts
constexpr uint32_t kTemporary = 1, kReservedBit = 2;  // features; the latter is always set
constexpr int64_t kEpoch = 946684800;                 // 2000-01-01 00:00 UTC

enum class DiskType : uint32_t { kFixed = 2, kDynamic = 3, kDifferencing = 4 };

// "Dynamic Disk Header Format".
struct DiskLocator {
  char code[4];
  be32 space;   // bytes set aside, or sectors: writers differ
  be32 length;  // bytes in use
  be32 reserved;
  be64 offset;
};
static_assert(sizeof(DiskLocator) == 24);
constexpr uint32_t kLocators = 8;

struct DiskHeader {
  char cookie[8];
  be64 data_offset;  // unused: kNoOffset
  be64 table_offset;
  be32 version, table_entries, block_size, checksum;
  uint8_t parent_id[16];
  be32 parent_timestamp;
  be32 reserved;
  uint8_t parent_name[512];  // UTF-16, big endian
  DiskLocator locators[kLocators];
  uint8_t reserved2[256];
};
static_assert(sizeof(DiskHeader) == 1024 && alignof(DiskHeader) == 1);
constexpr char kHeaderCookie[] = "cxsparse";

// "Block Allocation Table": 32-bit numbers of sectors. Each names a sector bitmap (one bit a
// sector, the first one the highest of its byte; padded to a sector) with the block's data behind.
constexpr uint32_t kUnused = 0xffffffff;

// Xen's batmap, in the first sector behind the table: one bit a block, set where all bits of its
// sector bitmap are. Written where the creator is "tap".
struct DiskBatmap {
  char cookie[8];
  be64 offset;
  be32 sectors, version, checksum;  // of the map's bytes
};
static_assert(sizeof(DiskBatmap) == 28);
constexpr char kBatmapCookie[] = "tdbatmap";

}  // namespace platter::vhd
