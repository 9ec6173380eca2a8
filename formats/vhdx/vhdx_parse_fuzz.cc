// The parsers against arbitrary bytes. Beside not crashing, what was parsed must be consistent in
// itself, and what is built of it must be parsed as the same. Checksums would keep nearly every
// input out, so each structure is tried once more with the right one.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "base/endian.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_parse.h"
#include "io/codec/crc32c.h"

namespace platter::vhdx {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

// `length` bytes of the input with signature and checksum in the first eight.
std::vector<std::byte> Summed(ConstBytes input, size_t length, uint32_t signature) {
  std::vector<std::byte> bytes(length);
  std::ranges::copy(input.first(std::min(input.size(), length)), bytes.begin());
  StoreAt(Bytes(bytes), 0, le32(signature));
  StoreAt(Bytes(bytes), 4, le32(0));
  StoreAt(Bytes(bytes), 4, le32(Crc32c(bytes)));
  return bytes;
}

void Headers(ConstBytes input) {
  (void)ParseHeader(input).has_value();
  auto header = ParseHeader(Summed(input, kHeaderBytes, kHeaderSignature));
  Require(header.has_value());
  Require(ParseHeader(BuildHeader(*header)).value() == *header);
  if (CheckHeader(*header, 64 * kMiB).has_value()) {
    Require(header->log.empty() || header->log.offset >= kHeaderSection);
  }
}

void RegionTables(ConstBytes input) {
  auto regions =
      ParseRegions(Summed(input, kRegionTableBytes, kRegionSignature), Range{kMiB, kMiB});
  if (!regions.has_value()) return;
  Require(!regions->bat.Overlaps(regions->metadata) && regions->bat.offset >= kHeaderSection);
  auto again = ParseRegions(BuildRegions(regions->all), Range{kMiB, kMiB});
  Require(again.has_value() && again->all == regions->all);
}

void MetadataItems(ConstBytes input) {
  std::vector<std::byte> table(kMetadataTableBytes);
  std::ranges::copy(input.first(std::min(input.size(), table.size())), table.begin());
  StoreAt(Bytes(table), 0, le64(kMetadataSignature));
  if (auto items = ParseMetadataTable(table, kMiB); items.has_value()) {
    for (const MetadataItem& item : *items) {
      Require(FitsIn(item.place.offset, item.place.length, kMiB));
    }
  }
  auto part = [&](size_t at, size_t length) {
    at = std::min(at, input.size());
    ConstBytes bytes = input.subspan(at, std::min(length, input.size() - at));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  MetadataBytes bytes;
  bytes.file_parameters = part(0, 8);
  bytes.disk_size = part(8, 8);
  bytes.logical_sector = part(16, 4);
  bytes.parent_locator = part(20, input.size());
  auto metadata = ParseMetadata(bytes);
  if (metadata.has_value()) {
    Require(metadata->chunk_ratio() >= 16 && metadata->disk_size <= kMostDiskSize);
    Require(metadata->blocks() == 0 ||
            metadata->PayloadIndex(metadata->blocks() - 1) < metadata->bat_entries());
  }
  if (auto locator = ParseParentLocator(input); locator.has_value()) {
    Require(!locator->linkages.empty());
  }
}

void LogEntries(ConstBytes input) {
  auto disk = LoadAt<LogEntryDisk>(input, 0);
  if (!disk) return;
  std::vector<std::byte> sector(input.begin(), input.end());
  StoreAt(Bytes(sector), 0, le32(kLogSignature));
  auto entry = ParseLogEntry(sector, disk->log_guid, kMiB);
  if (!entry.has_value()) return;
  Require(entry->has_value() && (*entry)->length <= kMiB && (*entry)->head_length() <= kMiB);
  for (size_t at = sizeof *disk; at + 32 <= input.size(); at += 32) {
    auto change = ParseLogDescriptor(input.subspan(at), **entry);
    if (!change.has_value()) continue;
    Require(IsAligned(change->file.offset, kLogSector) &&
            change->file.end() >= change->file.offset);
  }
}

}  // namespace
}  // namespace platter::vhdx

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter::vhdx;
  platter::ConstBytes input = std::as_bytes(std::span(data, size));
  (void)HasSignature(input);
  (void)ParseCreator(input);
  Headers(input);
  RegionTables(input);
  MetadataItems(input);
  LogEntries(input);
  return 0;
}
