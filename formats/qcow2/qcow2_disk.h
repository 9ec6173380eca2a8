// qcow2 as it lies on disk: structures and bit layouts, nothing else. All integers big endian.
// Source: QEMU docs/interop/qcow2.rst ("Qcow2 Image File Format"); section names below are its own.
#pragma once

#include <cstdint>

#include "base/endian.h"

namespace platter::qcow2 {

constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"

// "Header". Version 2 ends after snapshots_offset (72 bytes); version 3 has at least 104.
struct DiskHeader {
  be32 magic, version;
  be64 backing_file_offset;
  be32 backing_file_size, cluster_bits;
  be64 size;
  be32 crypt_method, l1_size;
  be64 l1_table_offset, refcount_table_offset;
  be32 refcount_table_clusters, nb_snapshots;
  be64 snapshots_offset;
  // version 3
  be64 incompatible_features, compatible_features, autoclear_features;
  be32 refcount_order, header_length;
  // "Additional fields": present where header_length reaches past them
  uint8_t compression_type;
  uint8_t padding[7];
};
static_assert(sizeof(DiskHeader) == 112 && alignof(DiskHeader) == 1);
constexpr uint32_t kHeaderLengthV2 = 72, kHeaderLengthV3 = 104;

enum CryptMethod : uint32_t { kCryptNone = 0, kCryptAes = 1, kCryptLuks = 2 };
enum CompressionType : uint8_t { kCompressionDeflate = 0, kCompressionZstd = 1 };

// incompatible_features
constexpr uint64_t kDirty = 1 << 0, kCorrupt = 1 << 1, kDataFile = 1 << 2, kCompressionBit = 1 << 3,
                   kExtendedL2 = 1 << 4;
constexpr uint64_t kKnownIncompatible =
    kDirty | kCorrupt | kDataFile | kCompressionBit | kExtendedL2;
// compatible_features
constexpr uint64_t kLazyRefcounts = 1 << 0;
// autoclear_features
constexpr uint64_t kBitmapsConsistent = 1 << 0, kDataFileRaw = 1 << 1;
constexpr uint64_t kKnownAutoclear = kBitmapsConsistent | kDataFileRaw;

// "Header extensions": type and length, then data padded to 8 bytes.
struct DiskExtension {
  be32 type, length;
};
static_assert(sizeof(DiskExtension) == 8);
enum ExtensionType : uint32_t {
  kExtEnd = 0,
  kExtBackingFormat = 0xe2792aca,
  kExtFeatureNames = 0x6803f857,
  kExtBitmaps = 0x23852875,
  kExtCrypto = 0x0537be77,
  kExtDataFile = 0x44415441,
};

// "Feature name table", one entry.
struct DiskFeatureName {
  uint8_t type, bit;
  char name[46];
};
static_assert(sizeof(DiskFeatureName) == 48);

// "Bitmaps extension".
struct DiskBitmapsExtension {
  be32 nb_bitmaps, reserved;
  be64 directory_size, directory_offset;
};
static_assert(sizeof(DiskBitmapsExtension) == 24);

// "Full disk encryption header pointer".
struct DiskCryptoExtension {
  be64 offset, length;
};
static_assert(sizeof(DiskCryptoExtension) == 16);

// "Snapshots": the fixed part of a table entry; extra data, id, name and padding to 8 follow.
struct DiskSnapshot {
  be64 l1_table_offset;
  be32 l1_size;
  be16 id_length, name_length;
  be32 date_seconds, date_nanoseconds;
  be64 vm_clock_nanoseconds;
  be32 vm_state_size, extra_size;
};
static_assert(sizeof(DiskSnapshot) == 40);
struct DiskSnapshotExtra {
  be64 vm_state_size, disk_size, icount;
};
static_assert(sizeof(DiskSnapshotExtra) == 24);

// "Bitmap directory", the fixed part of an entry; extra data, name and padding to 8 follow.
struct DiskBitmapEntry {
  be64 table_offset;
  be32 table_size, flags;
  uint8_t type, granularity_bits;
  be16 name_length;
  be32 extra_length;
};
static_assert(sizeof(DiskBitmapEntry) == 24);
constexpr uint32_t kBitmapInUse = 1 << 0, kBitmapAuto = 1 << 1, kBitmapExtraCompatible = 1 << 2;

// "Cluster mapping": L1 and L2 entries, refcount table entries, bitmap table entries.
constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;          // bits 9-55
constexpr uint64_t kRefcountOffsetMask = 0xfffffffffffffe00;  // bits 9-63 of the refcount table
constexpr uint64_t kCopied = uint64_t{1} << 63;
constexpr uint64_t kCompressed = uint64_t{1} << 62;
constexpr uint64_t kZeroFlag = 1 << 0;  // standard descriptor, version 3, no extended L2
constexpr uint64_t kL1Reserved = 0x7f000000000001ff;
constexpr uint64_t kL2Reserved = 0x3f000000000001fe;  // of a standard descriptor (bit 0 apart)
constexpr uint64_t kBitmapAllOnes = 1 << 0;
constexpr uint64_t kBitmapReserved = 0xff000000000001fe;  // of a bitmap table entry (bit 0 apart)

}  // namespace platter::qcow2
