// VMDK as it lies on disk. All integers are little endian; places and lengths are in sectors of 512
// bytes unless a field says otherwise.
//
// Sources: VMware, "Virtual Disk Format 5.0" (2011): sections "Hosted Sparse Extents",
// "Stream-Optimized Compressed Sparse Extents", "ESX Server Sparse Extents"; libyal, "VMware
// Virtual Disk (VMDK) format specification". Space-efficient sparse extents are not described by
// VMware; what is known of them comes from images.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "base/endian.h"

namespace platter::vmdk {

constexpr uint64_t kSector = 512;

// ---- Hosted sparse extents (Workstation, Fusion, OVF) ----

constexpr uint32_t kSparseMagic = 0x564d444b;  // "KDMV" on disk
constexpr uint64_t kAtEnd = UINT64_MAX;        // gd_offset: the footer says where

enum SparseFlags : uint32_t {
  kNewlineTest = 1u << 0,   // the four newline fields are to be checked
  kRedundant = 1u << 1,     // rgd_offset names a second set of tables
  kZeroedGrains = 1u << 2,  // a grain table entry of 1 is a grain of zeros
  kCompressed = 1u << 16,   // grains are zlib streams
  kMarkers = 1u << 17,      // grains and tables have markers before them
};

struct SparseHeader {  // "Hosted Sparse Extent Header"; the footer of a stream is one, too
  le32 magic;
  le32 version;  // 1; 2: zeroed grains; 3: streams, and what change tracking adds elsewhere
  le32 flags;
  le64 capacity;
  le64 grain_size;
  le64 descriptor_offset;  // 0: none is embedded
  le64 descriptor_size;
  le32 table_entries;  // grain table entries in a table
  le64 rgd_offset;
  le64 gd_offset;
  le64 overhead;  // where grains begin
  uint8_t unclean_shutdown;
  uint8_t newline_test[4];  // "\n \r\n": transfers as text change them
  le16 compression;         // 0 none, 1 zlib
  uint8_t padding[433];
};
static_assert(sizeof(SparseHeader) == kSector && alignof(SparseHeader) == 1);
static_assert(std::is_trivially_copyable_v<SparseHeader>);

constexpr std::array<uint8_t, 4> kNewlineBytes = {'\n', ' ', '\r', '\n'};
constexpr uint16_t kCompressionZlib = 1;

// Before a grain of a stream: its first guest sector, and the bytes of its zlib stream, which
// follows at once. With a size of 0 it is the start of a sector that says what follows.
struct GrainMarker {  // "Grain Marker"
  le64 sector;
  le32 size;
};
static_assert(sizeof(GrainMarker) == 12);

enum MarkerType : uint32_t {
  kMarkerEnd = 0,
  kMarkerTable = 1,
  kMarkerDirectory = 2,
  kMarkerFooter = 3,
};

struct MetadataMarker {  // "Metadata Marker"
  le64 sectors;          // of what follows
  le32 size;             // 0: not a grain
  le32 type;
  uint8_t padding[496];
};
static_assert(sizeof(MetadataMarker) == kSector);

// ---- ESX Server sparse extents (vmfsSparse) ----

constexpr uint32_t kCowdMagic = 0x44574f43;  // "COWD" on disk
constexpr uint32_t kCowdTableEntries = 4096;

struct CowdHeader {  // "COWDisk_Header": the part that says where things are
  le32 magic;
  le32 version;
  le32 flags;
  le32 capacity;
  le32 grain_size;
  le32 directory_offset;
  le32 directory_entries;
  le32 free_sector;  // the end of what is used
};
static_assert(sizeof(CowdHeader) == 32);

// ---- Space-efficient sparse extents (seSparse) ----

constexpr uint64_t kSeMagic = 0xcafebabe;
constexpr uint64_t kSeVersion = 0x200000001;
constexpr uint64_t kSeVolatileMagic = 0xcafecafe;

struct SeHeader {  // the constant one, at the start
  le64 magic;
  le64 version;
  le64 capacity;
  le64 grain_size;
  le64 table_size;  // sectors of a grain table
  le64 flags;
  le64 reserved[4];
  le64 volatile_header_offset, volatile_header_size;
  le64 journal_header_offset, journal_header_size;
  le64 journal_offset, journal_size;
  le64 directory_offset, directory_size;
  le64 tables_offset, tables_size;
  le64 free_bitmap_offset, free_bitmap_size;
  le64 backmap_offset, backmap_size;
  le64 grains_offset, grains_size;
  uint8_t padding[304];
};
static_assert(sizeof(SeHeader) == kSector);

struct SeVolatileHeader {
  le64 magic;
  le64 free_table;
  le64 next_transaction;
  uint8_t replay_journal;  // not 0: the tables are behind the journal
  uint8_t padding[487];
};
static_assert(sizeof(SeVolatileHeader) == kSector);

}  // namespace platter::vmdk
