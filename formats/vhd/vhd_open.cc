// Opening: which footer counts, what the headers say, and where the parent may be.
//
// The footer at the end counts. A fixed disk has no other. The other kinds keep a copy in their
// first sector, which stands in where the end is damaged or missing: after a crash while the file
// grew, or in a file that was cut short. (The copy alone does not make a fixed disk: those are
// guest bytes.)
#include <algorithm>
#include <utility>

#include "formats/foreign_names.h"
#include "formats/options.h"
#include "formats/signatures.h"
#include "formats/vhd/vhd_create.h"
#include "formats/vhd/vhd_fixed.h"
#include "formats/vhd/vhd_image.h"
#include "formats/vhd/vhd_info.h"
#include "formats/vhd/vhd_layer.h"

namespace platter::vhd {

namespace {

constexpr uint64_t kMostBatmap = 8 * kMiB;  // bytes; Xen's own have at most 128 KiB

// The footer that counts, and where it is.
struct Found {
  Footer footer;
  std::optional<uint64_t> tail;  // of the valid one at the end
  bool copy_good = false;        // the first sector is the same
};

Result<Found> FindFooter(const Ends& ends) {
  std::optional<Found> found;
  std::optional<Error> failure;  // of what looks like a footer, the end first
  for (uint64_t length : {kSector, kShortFooter}) {
    if (ends.tail.size() < length || found) continue;
    ConstBytes bytes = ConstBytes(ends.tail).last(length);
    if (!HasFooterCookie(bytes)) continue;
    auto footer = ParseFooter(bytes);
    if (footer.has_value()) {
      found = Found{std::move(*footer), ends.size - length, false};
    } else if (!failure) {
      failure =
          std::move(footer.error()).WithPrefix(fmt::format("footer at {:#x}", ends.size - length));
    }
  }
  ConstBytes first = ConstBytes(ends.head).first(std::min<size_t>(ends.head.size(), kSector));
  if (HasFooterCookie(first) && !(found && found->footer.type == DiskType::kFixed)) {
    auto copy = ParseFooter(first);
    if (found && copy.has_value()) {
      const DiskFooter a = EncodeFooter(found->footer), b = EncodeFooter(*copy);
      found->copy_good = std::ranges::equal(AsBytes(a), AsBytes(b));
    } else if (copy.has_value() && copy->type != DiskType::kFixed) {
      found = Found{std::move(*copy), std::nullopt, true};
    } else if (!copy.has_value() && !failure) {
      failure = std::move(copy.error()).WithPrefix("copy of the footer at 0");
    }
  }
  if (found) return std::move(*found);
  if (failure) return std::unexpected(std::move(*failure));
  return Fail(Code::kCorrupt, "neither its last sector nor its first one is a footer of a VHD");
}

// Headers and whatever else is no block, which must not overlap.
Result<> AddPart(Image& image, std::string_view what, Range range) {
  if (range.empty()) return {};
  if (!FitsIn(range.offset, range.length, image.file_size)) {
    return Fail(Code::kCorrupt, "{} at {:#x} of {} bytes: the file ends at {:#x}", what,
                range.offset, range.length, image.file_size);
  }
  if (const Part* other = FindPart(image, range)) {
    return Fail(Code::kCorrupt, "{} at {:#x} overlaps the {} at {:#x}", what, range.offset,
                other->what, other->range.offset);
  }
  image.parts.push_back({what, range});
  return {};
}

// Xen's batmap is an aid that can be done without: where it is damaged there is none.
Result<> ReadBatmap(Store& store, Image& image) {
  using namespace std::string_view_literals;
  if (image.footer.creator != "tap\0"sv) return {};
  Range sector{image.header.table().end(), kSector};
  if (!FitsIn(sector.offset, sector.length, image.file_size) || FindPart(image, sector)) return {};
  std::array<std::byte, kSector> bytes;
  TRY_AS("batmap header", store.Read(sector.offset, Bytes(bytes)));
  auto batmap = ParseBatmap(bytes, image.header.table_entries);
  if (!batmap || batmap->map.length > kMostBatmap || FindPart(image, batmap->map) ||
      !FitsIn(batmap->map.offset, batmap->map.length, image.file_size)) {
    return {};
  }
  TRY(AddPart(image, "batmap header", sector));
  if (FindPart(image, batmap->map)) return {};
  TRY(AddPart(image, "batmap", batmap->map));
  image.batmap.resize(batmap->map.length);
  TRY_AS("batmap", store.Read(batmap->map.offset, Bytes(image.batmap)));
  // Of all bytes: four that are left out would lie behind the end.
  image.batmap_good = ChecksumOf(image.batmap, image.batmap.size()) == batmap->checksum;
  return {};
}

void AddCandidate(std::vector<std::string>& paths, std::string path) {
  if (!path.empty() && std::ranges::find(paths, path) == paths.end()) {
    paths.push_back(std::move(path));
  }
}

// Relative paths before absolute ones, which are right on one machine only; the file's name last,
// which is looked for beside the image.
Result<Reference> ReadParent(Store& store, Image& image) {
  Reference parent{.role = Reference::kParent, .name = image.header.parent_name};
  // Xen records no id of a parent that is no VHD.
  if (!IsNil(image.header.parent_id)) {
    parent.format = "vpc";
    parent.id = IdText(image.header.parent_id);
  }
  if (image.header.parent_timestamp != 0) {
    parent.modified = kEpoch + int64_t{image.header.parent_timestamp};
  }
  std::vector<std::pair<std::string, std::string>> found;  // code, path
  for (const Locator& locator : image.header.locators) {
    const std::string what = fmt::format("parent locator '{}'", Printable(locator.code));
    if (locator.data.length > kMostLocator) {
      return Fail(Code::kCorrupt, "{} has {} bytes; no path has", what, locator.data.length);
    }
    TRY(AddPart(image, "parent locator", locator.data));
    std::vector<std::byte> data(locator.data.length);
    TRY_AS(what, store.Read(locator.data.offset, Bytes(data)));
    if (auto path = PathOfLocator(locator.code, data)) found.emplace_back(locator.code, *path);
  }
  for (std::string_view code : {"W2ru", "MacX", "Wi2r", "W2ku", "Wi2k"}) {
    for (auto& [have, path] : found) {
      if (have == code) AddCandidate(parent.paths, path);
    }
  }
  if (parent.name.empty() && !parent.paths.empty()) parent.name = parent.paths[0];
  AddCandidate(parent.paths, std::string(ForeignFileName(parent.name)));
  if (parent.name.empty() && parent.id.empty()) {
    return Fail(Code::kCorrupt, "it has a parent, but neither its name nor its id");
  }
  return parent;
}

Result<> CheckTable(const Image& image) {
  const Header& header = image.header;
  if (image.size > uint64_t{header.table_entries} * header.block_size) {
    return Fail(Code::kCorrupt,
                "its table has {} entries for blocks of {} bytes; the disk of {} bytes needs more",
                header.table_entries, header.block_size, image.size);
  }
  return {};
}

Result<std::optional<bool>> WantsGeometry(const OpenOptions& options) {
  auto choice = TRY(ChoiceOption(options.options, "force_size_calc", {"current_size", "chs"}));
  if (!choice) return std::optional<bool>();
  return std::optional<bool>(*choice == 1);
}

Result<Image> ReadHeaders(Store& store, FooterAndSize found) {
  const uint64_t file_size = found.file_size;
  Image image{.footer = std::move(found.footer),
              .size = found.size.bytes,
              .tail = found.tail,
              .copy_good = found.copy_good,
              .file_size = file_size};
  std::array<std::byte, sizeof(DiskHeader)> bytes;
  uint64_t at = image.footer.data_offset;
  if (!FitsIn(at, bytes.size(), file_size) || !IsAligned(at, kSector)) {
    return Fail(Code::kCorrupt,
                "footer: the dynamic disk header at {:#x} is not in the file ({:#x})", at,
                file_size);
  }
  const std::string what = fmt::format("dynamic disk header at {:#x}", at);
  TRY_AS(what, store.Read(at, Bytes(bytes)));
  image.header = TRY_AS(what, ParseHeader(bytes));
  image.disk_header = *LoadAt<DiskHeader>(bytes, 0);
  TRY(AddPart(image, "copy of the footer", {0, kSector}));
  TRY(AddPart(image, "dynamic disk header", {at, sizeof(DiskHeader)}));
  TRY(AddPart(image, "block allocation table", image.header.table()));
  TRY(CheckTable(image));
  return image;
}

}  // namespace

Result<FooterAndSize> ReadFooter(Store& store, const OpenOptions& options) {
  const Ends ends = TRY(ReadEnds(store));
  Found found = TRY(FindFooter(ends));
  SizeChoice size = ChooseSize(found.footer, TRY(WantsGeometry(options)));
  if (size.bytes > INT64_MAX) {
    return Fail(Code::kCorrupt, "footer: the disk has {} bytes, over 8 EiB", size.bytes);
  }
  if (found.footer.type == DiskType::kFixed && size.bytes > *found.tail) {
    return Fail(Code::kCorrupt,
                "it is a fixed disk of {} bytes, and {} bytes are in front of its footer",
                size.bytes, *found.tail);
  }
  return FooterAndSize{std::move(found.footer), size, found.tail, found.copy_good, ends.size};
}

Result<OpenedImage> ReadImage(Store& store, const OpenOptions& options) {
  FooterAndSize footer = TRY(ReadFooter(store, options));
  OpenedImage opened;
  opened.size = footer.size;
  opened.image = TRY(ReadHeaders(store, std::move(footer)));
  if (opened.image.differencing()) opened.parent = TRY(ReadParent(store, opened.image));
  TRY(ReadBatmap(store, opened.image));
  std::ranges::sort(opened.image.parts, {}, [](const Part& part) { return part.range.offset; });
  return opened;
}

Result<std::unique_ptr<Layer>> OpenVhd(std::unique_ptr<Store> store, const OpenOptions& options) {
  TRY(CheckOptionNames("vpc", options.options, kOpenOptions));
  if (!options.snapshot.empty()) return Fail(Code::kUnsupported, "VHDs have no snapshots");
  FooterAndSize footer = TRY(ReadFooter(*store, options));
  Info info = MakeInfo(footer.footer, footer.size);
  info.writable = options.writable;
  if (footer.footer.type == DiskType::kFixed) {
    return std::make_unique<FixedVhd>(std::move(store), std::move(footer.footer), std::move(info));
  }
  OpenedImage opened = TRY(ReadImage(*store, options));
  AddDynamicInfo(info, opened.image, opened.parent);
  return std::make_unique<VhdLayer>(std::move(store), std::move(opened.image), std::move(info));
}

}  // namespace platter::vhd
