// The parent locator is an item of the metadata region. It and its place in the metadata table
// change by one entry of the log: a crash leaves the old parent or the new one.
//
// Only who the parent is changes here, not whether there is one: that decides how the BAT is laid
// out and what the states of blocks mean.
#include "formats/vhdx/vhdx_set_parent.h"

#include <algorithm>
#include <set>
#include <vector>

#include "formats/vhdx/vhdx_create.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_image.h"
#include "formats/vhdx/vhdx_journal.h"

namespace platter::vhdx {
namespace {

constexpr uint64_t kMostMetadata = 8 * kMiB;  // bytes that are looked at; 1 MiB is the usual size

// The metadata region's bytes that are in use, and the pages of them that were changed.
class MetadataEdit {
 public:
  static Result<MetadataEdit> Load(Store& file, Range region) {
    MetadataEdit edit;
    edit.region_ = region;
    edit.bytes_.resize(std::min(region.length, kMostMetadata));
    TRY_AS("metadata", file.Read(region.offset, Bytes(edit.bytes_)));
    TRY(ParseMetadataTable(edit.bytes_, region.length));
    return edit;
  }

  Result<> PutLocator(ConstBytes locator) {
    const Range place = TRY(PlaceFor(locator.size()));
    auto table = *LoadAt<MetadataTableDisk>(bytes_, 0);
    for (uint32_t i = 0; i < table.entry_count; ++i) {
      const uint64_t at = sizeof table + i * sizeof(MetadataEntryDisk);
      auto entry = *LoadAt<MetadataEntryDisk>(bytes_, at);
      if (entry.item != kParentLocatorItem) continue;
      entry.offset = static_cast<uint32_t>(place.offset);
      entry.length = static_cast<uint32_t>(place.length);
      Put(at, AsBytes(entry));
      Put(place.offset, locator);
      return {};
    }
    return Fail(Code::kUnsupported,
                "the image was made without a parent, and cannot be given one: make an overlay");
  }

  std::vector<LogPage> TakePages() {
    std::vector<LogPage> pages;
    for (uint64_t page : changed_) {
      ConstBytes bytes = ConstBytes(bytes_).subspan(page, kLogSector);
      pages.push_back({region_.offset + page, {bytes.begin(), bytes.end()}});
    }
    return pages;
  }

 private:
  // The old place if that is long enough; else behind everything, where programs that keep items
  // which we do not know have theirs as well.
  Result<Range> PlaceFor(uint64_t length) const {
    uint64_t end = kMetadataTableBytes;
    auto table = *LoadAt<MetadataTableDisk>(bytes_, 0);
    for (uint32_t i = 0; i < table.entry_count; ++i) {
      auto entry = *LoadAt<MetadataEntryDisk>(bytes_, sizeof table + i * sizeof(MetadataEntryDisk));
      end = std::max(end, uint64_t{entry.offset} + entry.length);
      const bool old = entry.item == kParentLocatorItem && entry.length >= length;
      if (old && FitsIn(entry.offset, length, bytes_.size())) return Range{entry.offset, length};
    }
    end = RoundUp(end, 8);
    if (FitsIn(end, length, bytes_.size())) return Range{end, length};
    return Fail(Code::kNoSpace, "metadata: there is no room for {} bytes of parent locator",
                length);
  }

  void Put(uint64_t at, ConstBytes bytes) {
    std::ranges::copy(bytes, bytes_.begin() + static_cast<ptrdiff_t>(at));
    const Range pages = Range{at, bytes.size()}.Outward(kLogSector);
    for (uint64_t page = pages.offset; page < pages.end(); page += kLogSector) {
      changed_.insert(page);
    }
  }

  Range region_;
  std::vector<std::byte> bytes_;
  std::set<uint64_t> changed_;  // offsets in the region
};

}  // namespace

Result<> SetVhdxParent(Store& store, const OpenOptions& /*open*/,
                       const std::optional<Reference>& parent,
                       const std::optional<ParentFile>& file) {
  if (!store.writable()) return Fail(Code::kReadOnly, "'{}' is opened for reading", store.name());
  std::unique_ptr<ReplayedStore> replayed;
  Image image = TRY(ReadImage(store, replayed));
  TRY(FinishReplay(store, image, std::move(replayed)));
  if (!parent) {
    if (!image.metadata.has_parent) return {};
    return Fail(Code::kUnsupported,
                "a VHDX with a parent cannot do without one: convert it to have all in one image");
  }
  const std::vector<std::byte> locator = BuildParentLocator(TRY(LocatorOf(file)));
  auto edit = TRY(MetadataEdit::Load(store, image.regions.metadata));
  TRY(edit.PutLocator(locator));
  Journal journal(store, image.headers);
  TRY(journal.CheckLog());
  TRY(UpdateHeaders(store, image.headers,
                    [](Header& header) { header.file_write = MakeImageId({}, "file write"); }));
  TRY(journal.Commit(edit.TakePages(), {}, TRY(store.Size())));
  return journal.Close(/*erase=*/false);
}

}  // namespace platter::vhdx
