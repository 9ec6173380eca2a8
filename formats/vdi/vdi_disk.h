// VDI as it lies on disk: structures and values, nothing else. All integers little endian.
// Source: VirtualBox, src/VBox/Storage/VDICore.h; names in quotes are its own.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/endian.h"

namespace platter::vdi {

constexpr uint32_t kSignature = 0xbeda107f;
constexpr uint32_t kSector = 512;  // bytes: the only sector size there is

// "VDIPREHEADER"
struct DiskPreHeader {
  char creator[64];  // "<<< Oracle VM VirtualBox Disk Image >>>\n"
  le32 signature;
  le16 minor, major;
};
static_assert(sizeof(DiskPreHeader) == 72 && alignof(DiskPreHeader) == 1);

// "VDIDISKGEOMETRY"
struct DiskGeometry {
  le32 cylinders, heads, sectors, sector_size;
};
static_assert(sizeof(DiskGeometry) == 16);

using DiskId = std::array<std::byte, 16>;

constexpr size_t kCommentBytes = 256;

// "VDIHEADER0", behind the pre-header of versions 0.x. The block map follows at once, and the
// blocks follow the map.
struct DiskHeader0 {
  le32 type, flags;
  char comment[kCommentBytes];
  DiskGeometry geometry;
  le64 disk_size;
  le32 block_size, blocks, blocks_allocated;
  DiskId id, modification, parent_id;
};
static_assert(sizeof(DiskHeader0) == 348 && alignof(DiskHeader0) == 1);

// "VDIHEADER1" and "VDIHEADER1PLUS", behind the pre-header of versions 1.x.
struct DiskHeader1 {
  le32 header_size;  // bytes, of this structure: kHeader1Size or more
  le32 type, flags;
  char comment[kCommentBytes];
  le32 map_offset, data_offset;
  DiskGeometry geometry;
  le32 translation;  // of the BIOS; no longer in use
  le64 disk_size;
  le32 block_size, block_extra, blocks, blocks_allocated;
  DiskId id, modification, parent_id, parent_modification;
  // Present where header_size reaches past it.
  DiskGeometry logical_geometry;
};
static_assert(sizeof(DiskHeader1) == 400 && alignof(DiskHeader1) == 1);
constexpr uint32_t kHeader1Size = 384;
static_assert(kHeader1Size == offsetof(DiskHeader1, logical_geometry));

// Everything that changes is in the file's first sector, which a disk writes whole or not at all.
static_assert(sizeof(DiskPreHeader) + sizeof(DiskHeader1) <= kSector);

enum class ImageType : uint32_t { kDynamic = 1, kFixed = 2, kUndo = 3, kDifferencing = 4 };

// Entries of the block map: the number of a host block, or one of these.
constexpr uint32_t kFree = 0xffffffff;       // nothing here: zeros, or what the parent holds
constexpr uint32_t kDiscarded = 0xfffffffe;  // zeros, whatever the parent holds

}  // namespace platter::vdi
