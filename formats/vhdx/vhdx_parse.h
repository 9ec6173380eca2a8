// From the bytes of a VHDX file to checked values, and back. No I/O: this is what is fuzzed.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "formats/new_identity.h"

namespace platter::vhdx {

constexpr uint64_t kMostDiskSize = 64 * kTiB;
constexpr uint64_t kLeastBlock = kMiB, kMostBlock = 256 * kMiB;
constexpr uint64_t kSectorsPerBitmap = uint64_t{1} << 23;  // bits of one bitmap block of 1 MiB

// True if the file says that it is a VHDX.
bool HasSignature(ConstBytes head);
// The creator's name, as it is in the file.
std::string ParseCreator(ConstBytes head);

// Section 2.2.2.
struct Header {
  uint64_t sequence = 0;
  ImageId file_write{}, data_write{}, log_id{};
  uint16_t version = 1, log_version = 0;
  Range log;

  friend bool operator==(const Header&, const Header&) = default;
};
// One of the two. kCorrupt: signature or checksum are wrong, so that it does not count.
Result<Header> ParseHeader(ConstBytes bytes);
// Whether we can use it: versions and place of the log. A log that has to be replayed
// (`needs_log`) has to be there.
Result<> CheckHeader(const Header& header, uint64_t file_size);
std::vector<std::byte> BuildHeader(const Header& header);

// Section 2.2.3.
struct Region {
  ImageId id{};
  Range place;
  bool required = false;
  friend bool operator==(const Region&, const Region&) = default;
};
struct Regions {
  std::vector<Region> all;
  Range bat, metadata;
};
// kCorrupt: signature or checksum are wrong, so that this copy does not count.
Result<> CheckRegionTable(ConstBytes table);
// Of a copy that counts. Refuses overlaps (with `log` too), regions that are there twice, and by
// its id what is required and unknown.
Result<Regions> ParseRegions(ConstBytes table, Range log);
std::vector<std::byte> BuildRegions(const std::vector<Region>& regions);

// Section 2.6.2.6. Keys as they are, values as UTF-8.
struct ParentLocator {
  std::vector<std::pair<std::string, std::string>> entries;
  const std::string* Find(std::string_view key) const;
  // The parent's data write GUID may be one of these: as GuidText writes them.
  std::vector<std::string> linkages;
};

// Section 2.6. What the items say.
struct Metadata {
  uint32_t block_size = 0;
  bool leave_allocated = false, has_parent = false;
  uint64_t disk_size = 0;
  uint32_t logical_sector = 512, physical_sector = 512;
  ImageId page83{};
  uint64_t disk_size_offset = 0;  // of the item in the region
  ParentLocator parent;

  uint64_t chunk_ratio() const { return kSectorsPerBitmap * logical_sector / block_size; }
  uint64_t blocks() const { return DivideUp(disk_size, block_size); }
  // Of the BAT, with those of sector bitmaps.
  uint64_t bat_entries() const { return BatEntries(disk_size); }
  uint64_t BatEntries(uint64_t size) const;
  // Index in the BAT of a payload block's entry, and of the entry of its sector bitmap.
  uint64_t PayloadIndex(uint64_t block) const { return block + block / chunk_ratio(); }
  uint64_t BitmapIndex(uint64_t block) const {
    return (block / chunk_ratio() + 1) * (chunk_ratio() + 1) - 1;
  }
};
// One entry of the metadata table.
struct MetadataItem {
  ImageId id{};
  Range place;  // in the region; length 0: nowhere
  uint32_t flags = 0;
};
// `table`: the region's first 64 KiB. Refuses by its id what is required and unknown.
Result<std::vector<MetadataItem>> ParseMetadataTable(ConstBytes table, uint64_t region_length);
// `item(id)` gives the bytes of a known item, or nothing where it is not there.
struct MetadataBytes {
  std::optional<std::vector<std::byte>> file_parameters, disk_size, page83, logical_sector,
      physical_sector, parent_locator;
  uint64_t disk_size_offset = 0;
};
Result<Metadata> ParseMetadata(const MetadataBytes& items);
Result<ParentLocator> ParseParentLocator(ConstBytes item);
// Table and items of a metadata region, from its start on.
std::vector<std::byte> BuildMetadata(const Metadata& metadata);
std::vector<std::byte> BuildParentLocator(const ParentLocator& locator);

// Section 2.5.1.
enum class BlockState : uint8_t {
  kNotPresent = 0,
  kUndefined = 1,
  kZero = 2,
  kUnmapped = 3,
  kFullyPresent = 6,
  kPartiallyPresent = 7,
};
struct BatEntry {
  BlockState state = BlockState::kNotPresent;
  uint64_t host = 0;  // bytes

  bool present() const { return state >= BlockState::kFullyPresent; }
  // Nothing is there, and the place is not to be used for anything else.
  bool keeps_place() const {
    return host != 0 && (state == BlockState::kUndefined || state == BlockState::kUnmapped);
  }
  friend bool operator==(const BatEntry&, const BatEntry&) = default;
};
// Of a payload block. kCorrupt: a state that does not exist, or (without a parent) partially
// present.
Result<BatEntry> ParsePayloadEntry(uint64_t raw, uint64_t block, bool has_parent);
// Of a sector bitmap block: not present or fully present.
Result<BatEntry> ParseBitmapEntry(uint64_t raw, uint64_t index);
uint64_t EncodeEntry(BatEntry entry);

// Section 2.3.1.
struct LogEntry {
  uint64_t sequence = 0;
  uint32_t length = 0, tail = 0;  // bytes; tail from the log's start
  uint32_t descriptors = 0;
  uint32_t checksum = 0;
  uint64_t flushed_size = 0, last_size = 0;  // bytes of file
  ImageId log_id{};
  // Sectors that hold header and descriptors.
  uint64_t head_length() const;
};
// What one descriptor changes.
struct LogChange {
  Range file;         // bytes; a data sector's are 4 KiB
  bool zero = false;  // else from the log:
  uint64_t leading = 0;
  uint32_t trailing = 0;
};
// The first sector of an entry in a log of `log_length` bytes that is `header`'s. Nothing: it is no
// entry of this log. kCorrupt: it is, but contradicts itself.
Result<std::optional<LogEntry>> ParseLogEntry(ConstBytes sector, const ImageId& log_id,
                                              uint64_t log_length);
// The descriptor at `bytes` of an entry.
Result<LogChange> ParseLogDescriptor(ConstBytes bytes, const LogEntry& entry);
// Whether `sector` is a data sector of `entry`.
bool IsDataSector(ConstBytes sector, const LogEntry& entry);
// The 4 KiB that a data sector stands for.
void RestoreSector(ConstBytes sector, const LogChange& change, Bytes into);

// A whole entry: what to write where. `pages` are 4 KiB each at multiples of that; `zeros` are
// multiples of 4 KiB.
struct LogPage {
  uint64_t offset;
  std::vector<std::byte> bytes;
};
std::vector<std::byte> BuildLogEntry(const LogEntry& entry, const std::vector<LogPage>& pages,
                                     const std::vector<Range>& zeros);
// Bytes of an entry with so many pages and zero ranges.
uint64_t LogEntryLength(uint64_t pages, uint64_t zeros);

}  // namespace platter::vhdx
