// Headers, region tables and BAT entries.
#include "formats/vhdx/vhdx_parse.h"

#include <algorithm>
#include <bit>

#include "base/endian.h"
#include "formats/foreign_names.h"
#include "formats/vhdx/vhdx_disk.h"
#include "io/codec/crc32c.h"

namespace platter::vhdx {

namespace {

// The checksum of a structure that has its own in bytes 4 to 7.
uint32_t ChecksumOf(ConstBytes bytes) {
  constexpr std::byte kZeros[4]{};
  return Crc32c(bytes.subspan(8), Crc32c(kZeros, Crc32c(bytes.first(4))));
}

Result<> CheckSum(ConstBytes bytes, uint32_t recorded) {
  uint32_t computed = ChecksumOf(bytes);
  if (computed == recorded) return {};
  return Fail(Code::kCorrupt, "its checksum is {:#010x}, that of its bytes is {:#010x}", recorded,
              computed);
}

}  // namespace

bool HasSignature(ConstBytes head) {
  auto signature = LoadAt<le64>(head, 0);
  return signature && *signature == kFileSignature;
}

std::string ParseCreator(ConstBytes head) {
  auto identifier = LoadAt<FileIdentifierDisk>(head, 0);
  return identifier ? FromUtf16(identifier->creator, std::endian::little) : std::string();
}

Result<Header> ParseHeader(ConstBytes bytes) {
  auto disk = LoadAt<HeaderDisk>(bytes, 0);
  if (!disk || bytes.size() < kHeaderBytes) return Fail(Code::kCorrupt, "it is cut off");
  if (disk->signature != kHeaderSignature) {
    return Fail(Code::kCorrupt, "it has no signature ({:#010x})", uint32_t{disk->signature});
  }
  TRY(CheckSum(bytes.first(kHeaderBytes), disk->checksum));
  Header header;
  header.sequence = disk->sequence_number;
  header.file_write = disk->file_write_guid;
  header.data_write = disk->data_write_guid;
  header.log_id = disk->log_guid;
  header.version = disk->version;
  header.log_version = disk->log_version;
  header.log = {disk->log_offset, disk->log_length};
  return header;
}

Result<> CheckHeader(const Header& header, uint64_t file_size) {
  if (header.version != 1) {
    return Fail(Code::kUnsupported, "header: version {} (there is 1)", header.version);
  }
  const bool needs_log = !IsNil(header.log_id);
  if (header.log_version != 0) {
    return Fail(Code::kUnsupported, "header: log version {} (there is 0)", header.log_version);
  }
  if (!IsAligned(header.log.length, kAlign) || !IsAligned(header.log.offset, kAlign)) {
    return Fail(Code::kCorrupt, "header: the log, {:#x} bytes at {:#x}, is not aligned to 1 MiB",
                header.log.length, header.log.offset);
  }
  if (header.log.offset < kHeaderSection && !header.log.empty()) {
    return Fail(Code::kCorrupt, "header: the log at {:#x} lies in the header section",
                header.log.offset);
  }
  if (needs_log && header.log.empty()) {
    return Fail(Code::kCorrupt, "header: a log has to be replayed, and its length is 0");
  }
  if (needs_log && !FitsIn(header.log.offset, header.log.length, file_size)) {
    return Fail(Code::kCorrupt, "header: the log, {:#x} bytes at {:#x}, ends past the file ({:#x})",
                header.log.length, header.log.offset, file_size);
  }
  if (!CheckedAdd(header.log.offset, header.log.length)) {
    return Fail(Code::kCorrupt, "header: the log at {:#x} ends past 2^64", header.log.offset);
  }
  return {};
}

std::vector<std::byte> BuildHeader(const Header& header) {
  std::vector<std::byte> bytes(kHeaderBytes);
  HeaderDisk disk{};
  disk.signature = kHeaderSignature;
  disk.sequence_number = header.sequence;
  disk.file_write_guid = header.file_write;
  disk.data_write_guid = header.data_write;
  disk.log_guid = header.log_id;
  disk.version = header.version;
  disk.log_version = header.log_version;
  disk.log_offset = header.log.offset;
  disk.log_length = static_cast<uint32_t>(header.log.length);
  StoreAt(bytes, 0, disk);
  disk.checksum = ChecksumOf(bytes);
  StoreAt(bytes, 0, disk);
  return bytes;
}

namespace {

Result<Region> ParseRegion(const RegionEntryDisk& disk) {
  Region region{disk.guid, {disk.file_offset, disk.length}, (disk.required & 1) != 0};
  const std::string id = GuidText(region.id);
  if (region.place.empty() || !IsAligned(region.place.offset, kAlign) ||
      !IsAligned(region.place.length, kAlign)) {
    return Fail(Code::kCorrupt, "region table: region {} has {:#x} bytes at {:#x}, not aligned", id,
                region.place.length, region.place.offset);
  }
  if (region.place.offset < kHeaderSection ||
      !CheckedAdd(region.place.offset, region.place.length)) {
    return Fail(Code::kCorrupt, "region table: region {} cannot be at {:#x}", id,
                region.place.offset);
  }
  if (region.required && region.id != kBatRegion && region.id != kMetadataRegion) {
    return Fail(Code::kUnsupported, "region table: region {} is required, and not known", id);
  }
  return region;
}

Result<> CheckApart(const std::vector<Region>& regions, Range log) {
  std::vector<Region> sorted = regions;
  std::ranges::sort(sorted, {}, [](const Region& region) { return region.place.offset; });
  for (size_t i = 0; i < sorted.size(); ++i) {
    const Region& region = sorted[i];
    if (region.place.Overlaps(log)) {
      return Fail(Code::kCorrupt, "region table: region {} at {:#x} overlaps the log at {:#x}",
                  GuidText(region.id), region.place.offset, log.offset);
    }
    if (i == 0 || sorted[i - 1].place.end() <= region.place.offset) continue;
    return Fail(Code::kCorrupt, "region table: regions {} and {} overlap at {:#x}",
                GuidText(sorted[i - 1].id), GuidText(region.id), region.place.offset);
  }
  std::ranges::sort(sorted, {}, [](const Region& region) { return region.id; });
  auto twice =
      std::ranges::adjacent_find(sorted, {}, [](const Region& region) { return region.id; });
  if (twice == sorted.end()) return {};
  return Fail(Code::kCorrupt, "region table: region {} is there twice", GuidText(twice->id));
}

}  // namespace

Result<> CheckRegionTable(ConstBytes table) {
  auto disk = LoadAt<RegionTableDisk>(table, 0);
  if (!disk || table.size() < kRegionTableBytes) return Fail(Code::kCorrupt, "it is cut off");
  if (disk->signature != kRegionSignature) return Fail(Code::kCorrupt, "it has no signature");
  return CheckSum(table.first(kRegionTableBytes), disk->checksum);
}

Result<Regions> ParseRegions(ConstBytes table, Range log) {
  TRY_AS("region table", CheckRegionTable(table));
  auto disk = LoadAt<RegionTableDisk>(table, 0);
  if (disk->entry_count > kMostEntries) {
    return Fail(Code::kCorrupt, "region table: {} entries, {} is the most",
                uint32_t{disk->entry_count}, kMostEntries);
  }
  Regions regions;
  for (uint32_t i = 0; i < disk->entry_count; ++i) {
    uint64_t at = sizeof(RegionTableDisk) + i * sizeof(RegionEntryDisk);
    Region region = TRY(ParseRegion(*LoadAt<RegionEntryDisk>(table, at)));
    if (region.id == kBatRegion) regions.bat = region.place;
    if (region.id == kMetadataRegion) regions.metadata = region.place;
    regions.all.push_back(region);
  }
  TRY(CheckApart(regions.all, log));
  if (regions.bat.empty()) return Fail(Code::kCorrupt, "region table: there is no BAT");
  if (regions.metadata.empty()) {
    return Fail(Code::kCorrupt, "region table: there is no metadata region");
  }
  return regions;
}

std::vector<std::byte> BuildRegions(const std::vector<Region>& regions) {
  std::vector<std::byte> table(kRegionTableBytes);
  RegionTableDisk disk{};
  disk.signature = kRegionSignature;
  disk.entry_count = static_cast<uint32_t>(regions.size());
  uint64_t at = sizeof disk;
  for (const Region& region : regions) {
    RegionEntryDisk entry{};
    entry.guid = region.id;
    entry.file_offset = region.place.offset;
    entry.length = static_cast<uint32_t>(region.place.length);
    entry.required = region.required ? 1 : 0;
    StoreAt(table, at, entry);
    at += sizeof entry;
  }
  StoreAt(table, 0, disk);
  disk.checksum = ChecksumOf(table);
  StoreAt(table, 0, disk);
  return table;
}

Result<BatEntry> ParsePayloadEntry(uint64_t raw, uint64_t block, bool has_parent) {
  const uint64_t state = raw & kStateMask;
  if (state == 4 || state == 5) {
    return Fail(Code::kCorrupt, "BAT: block {}: there is no state {} (entry {:#x})", block, state,
                raw);
  }
  BatEntry entry{static_cast<BlockState>(state), raw & kOffsetMask};
  if (entry.state == BlockState::kPartiallyPresent && !has_parent) {
    return Fail(Code::kCorrupt, "BAT: block {}: partially present, in an image without a parent",
                block);
  }
  return entry;
}

Result<BatEntry> ParseBitmapEntry(uint64_t raw, uint64_t index) {
  const uint64_t state = raw & kStateMask;
  if (state != 0 && state != 6) {
    return Fail(Code::kCorrupt, "BAT: entry {}: a sector bitmap block has no state {}", index,
                state);
  }
  return BatEntry{static_cast<BlockState>(state), raw & kOffsetMask};
}

uint64_t EncodeEntry(BatEntry entry) { return entry.host | static_cast<uint64_t>(entry.state); }

}  // namespace platter::vhdx
