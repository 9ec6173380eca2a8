// Structures of VHDX as they lie on disk. All integers are little endian; GUIDs have their first
// three groups little endian.
//
// Source: [MS-VHDX] Virtual Hard Disk v2 (VHDX) File Format; section numbers below are its.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/endian.h"
#include "base/math.h"

namespace platter::vhdx {

using DiskGuid = std::array<std::byte, 16>;

constexpr DiskGuid MakeGuid(uint32_t a, uint16_t b, uint16_t c, uint64_t rest) {
  DiskGuid guid{};
  for (size_t i = 0; i < 4; ++i) guid[i] = static_cast<std::byte>(a >> (8 * i) & 0xff);
  for (size_t i = 0; i < 2; ++i) guid[4 + i] = static_cast<std::byte>(b >> (8 * i) & 0xff);
  for (size_t i = 0; i < 2; ++i) guid[6 + i] = static_cast<std::byte>(c >> (8 * i) & 0xff);
  for (size_t i = 0; i < 8; ++i) guid[8 + i] = static_cast<std::byte>(rest >> (56 - 8 * i) & 0xff);
  return guid;
}

// Section 2.2: the header section is the file's first MiB.
constexpr uint64_t kHeaderSection = kMiB;
constexpr uint64_t kHeaderOffsets[2] = {64 * kKiB, 128 * kKiB};
constexpr uint64_t kRegionTableOffsets[2] = {192 * kKiB, 256 * kKiB};
constexpr uint64_t kHeaderBytes = 4 * kKiB;
constexpr uint64_t kRegionTableBytes = 64 * kKiB;
// Regions, blocks and the log lie on multiples of this.
constexpr uint64_t kAlign = kMiB;

// Section 2.2.1.
constexpr uint64_t kFileSignature = 0x656c696678646876;  // "vhdxfile"
struct FileIdentifierDisk {
  le64 signature;
  std::array<std::byte, 512> creator;  // UTF-16
};
static_assert(sizeof(FileIdentifierDisk) == 520);

// Section 2.2.2. The checksum is over the 4 KiB of the header, with itself as zero.
constexpr uint32_t kHeaderSignature = 0x64616568;  // "head"
struct HeaderDisk {
  le32 signature, checksum;
  le64 sequence_number;
  DiskGuid file_write_guid, data_write_guid, log_guid;
  le16 log_version, version;
  le32 log_length;
  le64 log_offset;
};
static_assert(sizeof(HeaderDisk) == 80);

// Section 2.2.3. The checksum is over the table's 64 KiB.
constexpr uint32_t kRegionSignature = 0x69676572;  // "regi"
constexpr uint32_t kMostEntries = 2047;
struct RegionTableDisk {
  le32 signature, checksum, entry_count, reserved;
};
struct RegionEntryDisk {
  DiskGuid guid;
  le64 file_offset;
  le32 length;
  le32 required;  // bit 0
};
static_assert(sizeof(RegionTableDisk) == 16 && sizeof(RegionEntryDisk) == 32);

constexpr DiskGuid kBatRegion = MakeGuid(0x2dc27766, 0xf623, 0x4200, 0x9d64115e9bfd4a08);
constexpr DiskGuid kMetadataRegion = MakeGuid(0x8b7ca206, 0x4790, 0x4b9a, 0xb8fe575f050f886e);

// Section 2.3.1. An entry is this header and its descriptors, filled to 4 KiB, and a data sector
// for each data descriptor. Its checksum is over all of that.
constexpr uint64_t kLogSector = 4 * kKiB;
constexpr uint32_t kLogSignature = 0x65676f6c;  // "loge"
struct LogEntryDisk {
  le32 signature, checksum;
  le32 entry_length;  // bytes
  le32 tail;          // bytes from the log's start: the first entry of the sequence
  le64 sequence_number;
  le32 descriptor_count, reserved;
  DiskGuid log_guid;
  le64 flushed_file_offset, last_file_offset;
};
static_assert(sizeof(LogEntryDisk) == 64);

constexpr uint32_t kZeroSignature = 0x6f72657a;  // "zero"
constexpr uint32_t kDataSignature = 0x63736564;  // "desc"
struct LogDescriptorDisk {
  le32 signature;
  le32 trailing;  // data: the last 4 bytes of the sector
  le64 leading;   // data: its first 8 bytes; zero: how many bytes
  le64 file_offset;
  le64 sequence_number;
};
static_assert(sizeof(LogDescriptorDisk) == 32);

constexpr uint32_t kSectorSignature = 0x61746164;  // "data"
constexpr size_t kSectorLead = 8, kSectorTrail = 4;
struct LogSectorDisk {
  le32 signature, sequence_high;
  std::array<std::byte, kLogSector - 12> data;
  le32 sequence_low;
};
static_assert(sizeof(LogSectorDisk) == kLogSector);

// Section 2.5.1: bits 0 to 2 are the state, bits 20 to 63 the offset in the file.
constexpr uint64_t kStateMask = 7;
constexpr uint64_t kOffsetMask = ~(kMiB - 1);

// Section 2.6.1.
constexpr uint64_t kMetadataSignature = 0x617461646174656d;  // "metadata"
constexpr uint64_t kMetadataTableBytes = 64 * kKiB;
struct MetadataTableDisk {
  le64 signature;
  le16 reserved, entry_count;
  std::array<std::byte, 20> reserved2;
};
struct MetadataEntryDisk {
  DiskGuid item;
  le32 offset;  // from the start of the region, at least 64 KiB
  le32 length;
  le32 flags;
  le32 reserved;
};
static_assert(sizeof(MetadataTableDisk) == 32 && sizeof(MetadataEntryDisk) == 32);
constexpr uint32_t kIsUser = 1, kIsVirtualDisk = 2, kIsRequired = 4;

// Section 2.6.2.
constexpr DiskGuid kFileParametersItem = MakeGuid(0xcaa16737, 0xfa36, 0x4d43, 0xb3b633f0aa44e76b);
constexpr DiskGuid kDiskSizeItem = MakeGuid(0x2fa54224, 0xcd1b, 0x4876, 0xb2115dbed83bf4b8);
constexpr DiskGuid kPage83Item = MakeGuid(0xbeca12ab, 0xb2e6, 0x4523, 0x93efc309e000c746);
constexpr DiskGuid kLogicalSectorItem = MakeGuid(0x8141bf1d, 0xa96f, 0x4709, 0xba47f233a8faab5f);
constexpr DiskGuid kPhysicalSectorItem = MakeGuid(0xcda348c7, 0x445d, 0x4471, 0x9cc9e9885251c556);
constexpr DiskGuid kParentLocatorItem = MakeGuid(0xa8d35f2d, 0xb30b, 0x454d, 0xabf7d3d84834ab0c);

struct FileParametersDisk {
  le32 block_size;
  le32 flags;
};
constexpr uint32_t kLeaveBlocksAllocated = 1, kHasParent = 2;

// Section 2.6.2.6.
constexpr DiskGuid kVhdxLocator = MakeGuid(0xb04aefb7, 0xd19e, 0x4a81, 0xb78925b8e9445913);
struct ParentLocatorDisk {
  DiskGuid type;
  le16 reserved, count;
};
struct ParentEntryDisk {
  le32 key_offset, value_offset;  // from the start of the item
  le16 key_length, value_length;  // bytes of UTF-16
};
static_assert(sizeof(ParentLocatorDisk) == 20 && sizeof(ParentEntryDisk) == 12);

}  // namespace platter::vhdx
