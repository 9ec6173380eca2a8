// The metadata region and the parent locator in it.
#include <algorithm>
#include <bit>
#include <cctype>

#include "base/endian.h"
#include "formats/foreign_names.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_parse.h"

namespace platter::vhdx {

uint64_t Metadata::BatEntries(uint64_t size) const {
  const uint64_t count = DivideUp(size, block_size), ratio = chunk_ratio();
  if (has_parent) return DivideUp(count, ratio) * (ratio + 1);
  return count == 0 ? 0 : count + (count - 1) / ratio;
}

namespace {

bool IsKnown(const ImageId& id) {
  return id == kFileParametersItem || id == kDiskSizeItem || id == kPage83Item ||
         id == kLogicalSectorItem || id == kPhysicalSectorItem || id == kParentLocatorItem;
}

}  // namespace

Result<std::vector<MetadataItem>> ParseMetadataTable(ConstBytes table, uint64_t region_length) {
  auto disk = LoadAt<MetadataTableDisk>(table, 0);
  if (!disk || table.size() < kMetadataTableBytes) {
    return Fail(Code::kCorrupt, "metadata table: it is cut off");
  }
  if (disk->signature != kMetadataSignature) {
    return Fail(Code::kCorrupt, "metadata table: it has no signature");
  }
  if (disk->entry_count > kMostEntries) {
    return Fail(Code::kCorrupt, "metadata table: {} entries, {} is the most",
                uint16_t{disk->entry_count}, kMostEntries);
  }
  std::vector<MetadataItem> items;
  for (uint32_t i = 0; i < disk->entry_count; ++i) {
    uint64_t at = sizeof(MetadataTableDisk) + i * sizeof(MetadataEntryDisk);
    auto entry = *LoadAt<MetadataEntryDisk>(table, at);
    MetadataItem item{entry.item, {entry.offset, entry.length}, entry.flags};
    const bool system = (item.flags & kIsUser) == 0;
    if (!(system && IsKnown(item.id)) && (item.flags & kIsRequired)) {
      return Fail(Code::kUnsupported, "metadata table: item {} is required, and not known",
                  GuidText(item.id));
    }
    if (!system || !IsKnown(item.id)) continue;
    if (item.place.offset < kMetadataTableBytes ||
        !FitsIn(item.place.offset, item.place.length, region_length)) {
      return Fail(Code::kCorrupt,
                  "metadata table: item {}: {:#x} bytes at {:#x} of a region of {:#x}",
                  GuidText(item.id), item.place.length, item.place.offset, region_length);
    }
    if (std::ranges::count(items, item.id, &MetadataItem::id) > 0) {
      return Fail(Code::kCorrupt, "metadata table: item {} is there twice", GuidText(item.id));
    }
    items.push_back(item);
  }
  return items;
}

namespace {

template <class T>
Result<T> Item(const std::optional<std::vector<std::byte>>& bytes, std::string_view what) {
  if (!bytes) return Fail(Code::kCorrupt, "metadata: there is no {}", what);
  auto value = LoadAt<T>(*bytes, 0);
  if (!value) {
    return Fail(Code::kCorrupt, "metadata: the {} has {} bytes, {} are needed", what, bytes->size(),
                sizeof(T));
  }
  return *value;
}

Result<uint32_t> SectorItem(const std::optional<std::vector<std::byte>>& bytes,
                            std::string_view what) {
  uint32_t size = TRY(Item<le32>(bytes, what));
  if (size == 512 || size == 4096) return size;
  return Fail(Code::kCorrupt, "metadata: a {} of {} bytes (512 or 4096)", what, size);
}

}  // namespace

Result<Metadata> ParseMetadata(const MetadataBytes& items) {
  Metadata metadata;
  auto parameters = TRY(Item<FileParametersDisk>(items.file_parameters, "file parameters"));
  metadata.block_size = parameters.block_size;
  metadata.leave_allocated = (parameters.flags & kLeaveBlocksAllocated) != 0;
  metadata.has_parent = (parameters.flags & kHasParent) != 0;
  if (!std::has_single_bit(metadata.block_size) || metadata.block_size < kLeastBlock ||
      metadata.block_size > kMostBlock) {
    return Fail(Code::kCorrupt,
                "metadata: blocks of {} bytes (a power of two from 1 MiB to 256 MiB)",
                metadata.block_size);
  }
  metadata.logical_sector = TRY(SectorItem(items.logical_sector, "logical sector size"));
  metadata.physical_sector = metadata.logical_sector;
  if (items.physical_sector) {
    metadata.physical_sector = TRY(SectorItem(items.physical_sector, "physical sector size"));
  }
  metadata.disk_size = TRY(Item<le64>(items.disk_size, "virtual disk size"));
  metadata.disk_size_offset = items.disk_size_offset;
  if (metadata.disk_size > kMostDiskSize || !IsAligned(metadata.disk_size, 512)) {
    return Fail(Code::kCorrupt,
                "metadata: a virtual disk of {} bytes (whole sectors, at most 64 TiB)",
                metadata.disk_size);
  }
  if (items.page83) metadata.page83 = TRY(Item<ImageId>(items.page83, "virtual disk id"));
  if (metadata.has_parent) {
    if (!items.parent_locator) {
      return Fail(Code::kCorrupt, "metadata: the image has a parent, and no parent locator");
    }
    metadata.parent = TRY_AS("parent locator", ParseParentLocator(*items.parent_locator));
  }
  return metadata;
}

const std::string* ParentLocator::Find(std::string_view key) const {
  auto found = std::ranges::find(entries, key,
                                 [](const auto& entry) -> std::string_view { return entry.first; });
  return found == entries.end() ? nullptr : &found->second;
}

namespace {

Result<std::string> Text(ConstBytes item, uint64_t offset, uint64_t length) {
  if (offset < sizeof(ParentLocatorDisk) || length == 0 || length % 2 != 0 ||
      !FitsIn(offset, length, item.size())) {
    return Fail(Code::kCorrupt, "text of {} bytes at {:#x} of {:#x}", length, offset, item.size());
  }
  return FromUtf16(item.subspan(offset, length), std::endian::little);
}

// "{...}" with a GUID in it, as GuidText writes it.
std::optional<std::string> PlainGuid(std::string_view text) {
  if (text.size() != 38 || text.front() != '{' || text.back() != '}') return std::nullopt;
  std::string plain(text.substr(1, 36));
  for (size_t i = 0; i < plain.size(); ++i) {
    auto c = static_cast<unsigned char>(plain[i]);
    bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? c != '-' : !std::isxdigit(c)) return std::nullopt;
    plain[i] = static_cast<char>(std::tolower(c));
  }
  return plain;
}

}  // namespace

Result<ParentLocator> ParseParentLocator(ConstBytes item) {
  auto disk = LoadAt<ParentLocatorDisk>(item, 0);
  if (!disk) return Fail(Code::kCorrupt, "it is cut off");
  if (disk->type != kVhdxLocator) {
    return Fail(Code::kUnsupported, "its type {} is not known", GuidText(disk->type));
  }
  ParentLocator locator;
  for (uint32_t i = 0; i < disk->count; ++i) {
    auto entry = LoadAt<ParentEntryDisk>(item, sizeof *disk + i * sizeof(ParentEntryDisk));
    if (!entry) return Fail(Code::kCorrupt, "{} entries do not fit in it", uint16_t{disk->count});
    std::string key =
        TRY_AS(fmt::format("key {}", i), Text(item, entry->key_offset, entry->key_length));
    std::string value =
        TRY_AS(fmt::format("value {}", i), Text(item, entry->value_offset, entry->value_length));
    if (key == "parent_linkage" || key == "parent_linkage2") {
      auto id = PlainGuid(value);
      if (!id) return Fail(Code::kCorrupt, "{} is no GUID ('{}')", key, Printable(value));
      // Writers leave the second one as zeros where there is none.
      if (*id != GuidText(ImageId{})) locator.linkages.push_back(*id);
    }
    locator.entries.emplace_back(std::move(key), std::move(value));
  }
  if (locator.linkages.empty()) {
    return Fail(Code::kCorrupt, "it does not say which parent is meant (parent_linkage)");
  }
  return locator;
}

std::vector<std::byte> BuildParentLocator(const ParentLocator& locator) {
  std::vector<std::byte> bytes(sizeof(ParentLocatorDisk) +
                               locator.entries.size() * sizeof(ParentEntryDisk));
  ParentLocatorDisk disk{};
  disk.type = kVhdxLocator;
  disk.count = static_cast<uint16_t>(locator.entries.size());
  StoreAt(bytes, 0, disk);
  uint64_t at = sizeof disk;
  for (const auto& [key, value] : locator.entries) {
    ParentEntryDisk entry{};
    auto append = [&](std::string_view text, le32& offset, le16& length) {
      std::vector<std::byte> wide = ToUtf16(text, std::endian::little);
      offset = static_cast<uint32_t>(bytes.size());
      length = static_cast<uint16_t>(wide.size());
      bytes.insert(bytes.end(), wide.begin(), wide.end());
    };
    append(key, entry.key_offset, entry.key_length);
    append(value, entry.value_offset, entry.value_length);
    StoreAt(bytes, at, entry);
    at += sizeof entry;
  }
  return bytes;
}

std::vector<std::byte> BuildMetadata(const Metadata& metadata) {
  std::vector<std::byte> bytes(kMetadataTableBytes);
  MetadataTableDisk table{};
  table.signature = kMetadataSignature;
  uint16_t count = 0;
  auto add = [&](const ImageId& id, uint32_t flags, ConstBytes item) {
    MetadataEntryDisk entry{};
    entry.item = id;
    entry.offset = static_cast<uint32_t>(bytes.size());
    entry.length = static_cast<uint32_t>(item.size());
    entry.flags = flags | kIsRequired;
    StoreAt(bytes, sizeof table + count++ * sizeof entry, entry);
    bytes.insert(bytes.end(), item.begin(), item.end());
    bytes.resize(RoundUp(bytes.size(), 8));
  };
  FileParametersDisk parameters{};
  parameters.block_size = metadata.block_size;
  parameters.flags = (metadata.leave_allocated ? kLeaveBlocksAllocated : 0) |
                     (metadata.has_parent ? kHasParent : 0);
  add(kFileParametersItem, 0, AsBytes(parameters));
  add(kDiskSizeItem, kIsVirtualDisk, AsBytes(le64(metadata.disk_size)));
  add(kLogicalSectorItem, kIsVirtualDisk, AsBytes(le32(metadata.logical_sector)));
  add(kPhysicalSectorItem, kIsVirtualDisk, AsBytes(le32(metadata.physical_sector)));
  add(kPage83Item, kIsVirtualDisk, metadata.page83);
  if (metadata.has_parent) add(kParentLocatorItem, 0, BuildParentLocator(metadata.parent));
  table.entry_count = count;
  StoreAt(bytes, 0, table);
  return bytes;
}

}  // namespace platter::vhdx
