#include "formats/vdi/vdi_parse.h"

#include <algorithm>

namespace platter::vdi {
namespace {

constexpr uint64_t kMaxSize = uint64_t{1} << 63;  // guest offsets are below it

template <size_t kLength>
std::string TextOf(const char (&field)[kLength]) {
  return std::string(field, std::find(field, field + kLength, '\0'));
}

template <size_t kLength>
void SetText(char (&field)[kLength], std::string_view text) {
  std::copy_n(text.data(), std::min(text.size(), kLength), field);
}

Geometry FromDisk(const DiskGeometry& disk) {
  return {disk.cylinders, disk.heads, disk.sectors, disk.sector_size};
}

DiskGeometry ToDisk(const Geometry& geometry) {
  return {geometry.cylinders, geometry.heads, geometry.sectors, geometry.sector_size};
}

// What both versions have.
template <class Disk>
void LoadCommon(const Disk& disk, Header& header) {
  header.comment = TextOf(disk.comment);
  header.type = static_cast<ImageType>(static_cast<uint32_t>(disk.type));
  header.flags = disk.flags;
  header.geometry = FromDisk(disk.geometry);
  header.size = disk.disk_size;
  header.block_size = disk.block_size;
  header.blocks = disk.blocks;
  header.allocated = disk.blocks_allocated;
  header.id = disk.id;
  header.modification = disk.modification;
  header.parent_id = disk.parent_id;
}

template <class Disk>
void StoreCommon(const Header& header, Disk& disk) {
  SetText(disk.comment, header.comment);
  disk.type = static_cast<uint32_t>(header.type);
  disk.flags = header.flags;
  disk.geometry = ToDisk(header.geometry);
  disk.disk_size = header.size;
  disk.block_size = header.block_size;
  disk.blocks = header.blocks;
  disk.blocks_allocated = header.allocated;
  disk.id = header.id;
  disk.modification = header.modification;
  disk.parent_id = header.parent_id;
}

Result<> LoadVersion0(ConstBytes head, Header& header) {
  auto disk = LoadAt<DiskHeader0>(head, sizeof(DiskPreHeader));
  if (!disk) return Fail(Code::kCorrupt, "the header is cut off after {} bytes", head.size());
  LoadCommon(*disk, header);
  header.map_offset = header.end();
  header.data_offset = header.map_offset + header.map_bytes();
  return {};
}

Result<> LoadVersion1(ConstBytes head, Header& header) {
  if (head.size() < sizeof(DiskPreHeader) + kHeader1Size) {
    return Fail(Code::kCorrupt, "the header is cut off after {} bytes", head.size());
  }
  DiskHeader1 disk{};
  ConstBytes from = head.subspan(sizeof(DiskPreHeader));
  std::memcpy(static_cast<void*>(&disk), from.data(), std::min(from.size(), sizeof disk));
  header.header_size = disk.header_size;
  if (header.header_size < kHeader1Size) {
    return Fail(Code::kCorrupt, "the header says that it has {} bytes; it has at least {}",
                header.header_size, kHeader1Size);
  }
  header.has_logical_geometry =
      header.header_size >= sizeof(DiskHeader1) && from.size() >= sizeof(DiskHeader1);
  LoadCommon(disk, header);
  header.map_offset = disk.map_offset;
  header.data_offset = disk.data_offset;
  header.translation = disk.translation;
  header.block_extra = disk.block_extra;
  header.parent_modification = disk.parent_modification;
  if (header.has_logical_geometry) header.logical_geometry = FromDisk(disk.logical_geometry);
  return {};
}

Result<> CheckSizes(const Header& header) {
  if (header.type < ImageType::kDynamic || header.type > ImageType::kDifferencing) {
    return Fail(Code::kUnsupported, "image type {} is not known",
                static_cast<uint32_t>(header.type));
  }
  if (header.geometry.sector_size != kSector) {
    return Fail(Code::kUnsupported, "sectors of {} bytes; there are none but of {}",
                header.geometry.sector_size, kSector);
  }
  if (header.block_size == 0 || !IsAligned(header.block_size, kSector)) {
    return Fail(Code::kUnsupported, "blocks of {} bytes, which are not whole sectors",
                header.block_size);
  }
  if (header.size >= kMaxSize) {
    return Fail(Code::kUnsupported, "a disk of {:#x} bytes is too large", header.size);
  }
  if (BlocksFor(header.size, header.block_size) > header.blocks) {
    return Fail(Code::kCorrupt, "the disk has {:#x} bytes, but {} blocks of {} bytes have {:#x}",
                header.size, header.blocks, header.block_size,
                uint64_t{header.blocks} * header.block_size);
  }
  return {};
}

Result<> CheckPlaces(const Header& header) {
  if (header.map_offset < header.end()) {
    return Fail(Code::kCorrupt, "the block map at {:#x} lies in the header, which ends at {:#x}",
                header.map_offset, header.end());
  }
  if (header.data_offset < header.map_offset + header.map_bytes()) {
    return Fail(Code::kCorrupt,
                "the blocks begin at {:#x}, inside the block map ({} entries at {:#x})",
                header.data_offset, header.blocks, header.map_offset);
  }
  return {};
}

}  // namespace

uint64_t Header::end() const {
  if (major == 0) return sizeof(DiskPreHeader) + sizeof(DiskHeader0);
  // Fields behind those that we know stay in the file as they are.
  return sizeof(DiskPreHeader) + (has_logical_geometry ? sizeof(DiskHeader1) : kHeader1Size);
}

Range Header::HostBlock(uint32_t index) const {
  constexpr uint64_t kNowhere = ~uint64_t{0};
  auto before = CheckedMultiply(index, stride());
  auto offset = before ? CheckedAdd(*before, data_offset + block_extra) : std::nullopt;
  return {std::min(offset.value_or(kNowhere), kNowhere - block_size), block_size};
}

Result<Header> ParseHeader(ConstBytes head) {
  auto pre = LoadAt<DiskPreHeader>(head, 0);
  if (!pre) return Fail(Code::kCorrupt, "a file of {} bytes has no header", head.size());
  if (pre->signature != kSignature) {
    return Fail(Code::kCorrupt, "the signature is {:#x} instead of {:#x}",
                static_cast<uint32_t>(pre->signature), kSignature);
  }
  Header header;
  header.creator = TextOf(pre->creator);
  header.major = pre->major;
  header.minor = pre->minor;
  if (header.major > 1) {
    return Fail(Code::kUnsupported, "version {}.{} is not known", header.major, header.minor);
  }
  TRY(header.major == 0 ? LoadVersion0(head, header) : LoadVersion1(head, header));
  TRY(CheckSizes(header));
  TRY(CheckPlaces(header));
  return header;
}

std::vector<std::byte> BuildHeader(const Header& header) {
  std::vector<std::byte> bytes(header.end());
  DiskPreHeader pre{};
  SetText(pre.creator, header.creator);
  pre.signature = kSignature;
  pre.minor = header.minor;
  pre.major = header.major;
  StoreAt(bytes, 0, pre);
  if (header.major == 0) {
    DiskHeader0 disk{};
    StoreCommon(header, disk);
    StoreAt(bytes, sizeof pre, disk);
    return bytes;
  }
  DiskHeader1 disk{};
  StoreCommon(header, disk);
  disk.header_size = header.header_size;
  disk.map_offset = static_cast<uint32_t>(header.map_offset);
  disk.data_offset = static_cast<uint32_t>(header.data_offset);
  disk.translation = header.translation;
  disk.block_extra = header.block_extra;
  disk.parent_modification = header.parent_modification;
  disk.logical_geometry = ToDisk(header.logical_geometry);
  std::memcpy(bytes.data() + sizeof pre, static_cast<const void*>(&disk),
              bytes.size() - sizeof pre);
  return bytes;
}

std::string_view TypeName(ImageType type) {
  switch (type) {
    case ImageType::kDynamic: return "dynamic";
    case ImageType::kFixed: return "fixed";
    case ImageType::kUndo: return "undo";
    case ImageType::kDifferencing: return "differencing";
  }
  return "";
}

}  // namespace platter::vdi
