#include "formats/vhdx/vhdx_image.h"

#include <algorithm>
#include <utility>

#include "base/endian.h"
#include "formats/foreign_names.h"
#include "formats/vhdx/vhdx_disk.h"

namespace platter::vhdx {

Result<Headers> ReadHeaders(Store& file) {
  Headers headers;
  std::array<std::optional<Header>, 2> found;
  uint64_t size = TRY(file.Size());
  for (int slot = 0; slot < 2; ++slot) {
    std::vector<std::byte> bytes(kHeaderBytes);
    if (!FitsIn(kHeaderOffsets[slot], bytes.size(), size)) {
      headers.problems[slot] = "the file ends before it";
      continue;
    }
    TRY(file.Read(kHeaderOffsets[slot], Bytes(bytes)));
    auto header = ParseHeader(bytes);
    if (header.has_value()) {
      found[slot] = *header;
    } else {
      headers.problems[slot] = header.error().text();
    }
  }
  if (!found[0] && !found[1]) {
    return Fail(Code::kCorrupt, "neither header is valid: the first: {}; the second: {}",
                headers.problems[0], headers.problems[1]);
  }
  if (found[0] && found[1] && found[0]->sequence == found[1]->sequence && *found[0] != *found[1]) {
    return Fail(Code::kCorrupt, "the headers have one sequence number ({}) and differ",
                found[0]->sequence);
  }
  headers.slot = !found[0] || (found[1] && found[1]->sequence > found[0]->sequence) ? 1 : 0;
  headers.current = *found[headers.slot];
  return headers;
}

Result<> UpdateHeaders(Store& file, Headers& headers, const std::function<void(Header&)>& change) {
  Header header = headers.current;
  change(header);
  for (int i = 0; i < 2; ++i) {
    ++header.sequence;
    int slot = 1 - headers.slot;
    std::vector<std::byte> bytes = BuildHeader(header);
    TRY_AS("header", file.Write(kHeaderOffsets[slot], ConstBytes(bytes)));
    TRY(file.Sync());
    headers.current = header;
    headers.slot = slot;
    headers.problems[slot].clear();
  }
  return {};
}

namespace {

Result<Regions> ReadRegions(Store& file, Image& image) {
  std::optional<std::vector<std::byte>> good;
  for (int copy = 0; copy < 2; ++copy) {
    std::vector<std::byte> table(kRegionTableBytes);
    TRY_AS("region table", file.Read(kRegionTableOffsets[copy], Bytes(table)));
    Result<> whole = CheckRegionTable(table);
    if (!whole.has_value()) {
      image.region_problems[copy] = whole.error().text();
    } else if (!good) {
      good = std::move(table);
    } else if (*good != table) {
      image.region_problems[copy] = "it differs from the first";
    }
  }
  if (!good) {
    return Fail(Code::kCorrupt, "neither region table is valid: the first: {}; the second: {}",
                image.region_problems[0], image.region_problems[1]);
  }
  return ParseRegions(*good, image.headers.current.log);
}

Result<Metadata> ReadMetadata(Store& file, Range region) {
  constexpr uint64_t kMostItem = kMiB;
  std::vector<std::byte> table(kMetadataTableBytes);
  TRY_AS("metadata table", file.Read(region.offset, Bytes(table)));
  MetadataBytes bytes;
  for (const MetadataItem& item : TRY(ParseMetadataTable(table, region.length))) {
    if (item.place.length > kMostItem) {
      return Fail(Code::kCorrupt, "metadata table: item {} has {} bytes, {} is the most",
                  GuidText(item.id), item.place.length, kMostItem);
    }
    std::vector<std::byte> value(item.place.length);
    TRY_AS("metadata item", file.Read(region.offset + item.place.offset, Bytes(value)));
    if (item.id == kDiskSizeItem) bytes.disk_size_offset = item.place.offset;
    auto& into = item.id == kFileParametersItem   ? bytes.file_parameters
                 : item.id == kDiskSizeItem       ? bytes.disk_size
                 : item.id == kPage83Item         ? bytes.page83
                 : item.id == kLogicalSectorItem  ? bytes.logical_sector
                 : item.id == kPhysicalSectorItem ? bytes.physical_sector
                                                  : bytes.parent_locator;
    into = std::move(value);
  }
  return ParseMetadata(bytes);
}

Result<> CheckRegionsInside(const Image& image, uint64_t file_size) {
  const Range bat = image.regions.bat;
  if (!FitsIn(bat.offset, bat.length, file_size)) {
    return Fail(Code::kCorrupt, "BAT: {:#x} bytes at {:#x} end past the file ({:#x})", bat.length,
                bat.offset, file_size);
  }
  uint64_t needed = image.metadata.bat_entries() * 8;
  if (needed > bat.length) {
    return Fail(Code::kCorrupt, "BAT: {:#x} bytes, a disk of {} bytes needs {:#x}", bat.length,
                image.metadata.disk_size, needed);
  }
  return {};
}

// Identifier and headers, which the log never changes.
Result<Image> ReadStart(Store& file) {
  Image image;
  uint64_t size = TRY(file.Size());
  std::vector<std::byte> identifier(std::min<uint64_t>(size, sizeof(FileIdentifierDisk)));
  TRY(file.Read(0, Bytes(identifier)));
  if (!HasSignature(identifier)) return Fail(Code::kCorrupt, "the file has no signature");
  image.creator = ParseCreator(identifier);
  image.headers = TRY(ReadHeaders(file));
  TRY(CheckHeader(image.headers.current, size));
  return image;
}

Result<> ReadRest(Store& file, Image& image) {
  image.regions = TRY(ReadRegions(file, image));
  image.metadata = TRY(ReadMetadata(file, image.regions.metadata));
  return CheckRegionsInside(image, TRY(file.Size()));
}

}  // namespace

Result<Image> ReadImage(Store& file, std::unique_ptr<ReplayedStore>& replayed) {
  Image image = TRY(ReadStart(file));
  if (auto sequence = TRY(FindSequence(file, image.headers.current))) {
    LogChanges changes = TRY(LogChanges::Load(file, image.headers.current, *sequence));
    image.replayed_entries = sequence->entries.size();
    replayed = std::make_unique<ReplayedStore>(file, std::move(changes));
  }
  TRY(ReadRest(replayed ? static_cast<Store&>(*replayed) : file, image));
  return image;
}

Result<> FinishReplay(Store& file, Image& image, std::unique_ptr<ReplayedStore> replayed) {
  if (IsNil(image.headers.current.log_id)) return {};
  if (replayed) TRY_AS("replaying the log", replayed->Apply());
  return UpdateHeaders(file, image.headers, [](Header& header) {
    header.log_id = {};
    header.file_write = MakeImageId({}, "file write");
  });
}

namespace {

// Where the parent may be, as the locator says: relative to the image, by volume, by drive. A path
// of another system helps no further than its last part, which is looked for beside the image; the
// linkage says whether it is the one.
Reference ParentReference(const ParentLocator& locator) {
  Reference reference;
  reference.format = "vhdx";
  reference.versions = locator.linkages;
  std::vector<std::string> beside;
  for (const char* key : {"relative_path", "volume_path", "absolute_win32_path"}) {
    const std::string* value = locator.Find(key);
    if (!value || value->empty()) continue;
    if (reference.name.empty()) reference.name = *value;
    if (auto path = FromWindowsPath(*value)) reference.paths.push_back(*path);
    beside.emplace_back(ForeignFileName(*value));
  }
  for (std::string& name : beside) {
    if (name.empty() || std::ranges::count(reference.paths, name) > 0) continue;
    reference.paths.push_back(std::move(name));
  }
  return reference;
}

std::string Subformat(const Metadata& metadata) {
  return metadata.has_parent ? "differencing" : metadata.leave_allocated ? "fixed" : "dynamic";
}

}  // namespace

Info MakeInfo(const Image& image) {
  const Metadata& metadata = image.metadata;
  const Header& header = image.headers.current;
  Info info;
  info.format = "vhdx";
  info.size = metadata.disk_size;
  info.unit = metadata.block_size;
  info.new_units_zero = !metadata.has_parent;
  info.sector = metadata.logical_sector;
  info.dirty = !IsNil(header.log_id);
  info.identity = {.id = GuidText(metadata.page83), .version = GuidText(header.data_write)};
  if (metadata.has_parent) info.references.push_back(ParentReference(metadata.parent));
  info.facts.push_back({"subformat", Subformat(metadata)});
  info.facts.push_back({"creator", image.creator});
  info.facts.push_back({"block-size", uint64_t{metadata.block_size}});
  info.facts.push_back({"logical-sector-size", uint64_t{metadata.logical_sector}});
  info.facts.push_back({"physical-sector-size", uint64_t{metadata.physical_sector}});
  info.facts.push_back({"page83-id", GuidText(metadata.page83)});
  info.facts.push_back({"file-write-guid", GuidText(header.file_write)});
  info.facts.push_back({"data-write-guid", GuidText(header.data_write)});
  info.facts.push_back({"log", Facts{{"offset", header.log.offset},
                                     {"size", header.log.length},
                                     {"replayed-entries", uint64_t{image.replayed_entries}}}});
  if (metadata.has_parent) {
    Facts locator;
    for (const auto& [key, value] : metadata.parent.entries) locator.push_back({key, value});
    info.facts.push_back({"parent-locator", std::move(locator)});
  }
  return info;
}

}  // namespace platter::vhdx
