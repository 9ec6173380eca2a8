#include "formats/vhdx/vhdx_layer.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "base/endian.h"
#include "formats/vhdx/vhdx_bat_scan.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_slices.h"

namespace platter::vhdx {

VhdxLayer::VhdxLayer(std::unique_ptr<Store> file, std::unique_ptr<ReplayedStore> replayed,
                     Image image, Info info, uint64_t file_size, bool fresh)
    : owned_(std::move(file)),
      replayed_(std::move(replayed)),
      file_(replayed_ ? replayed_.get() : owned_.get()),
      image_(std::move(image)),
      log_(image_.headers.current.log),
      info_(std::move(info)),
      name_(fmt::format("vhdx '{}'", file_->name())),
      fresh_(fresh),
      file_size_(file_size),
      space_(*file_, pins_),
      journal_(*file_, image_.headers),
      tables_(*file_, "BAT or sector bitmap", kSliceBytes, kCacheBytes) {}

VhdxLayer::~VhdxLayer() {
  if (!writing_) return;
  // What cannot be written now is in the log, or was never acknowledged.
  if (!Flush().has_value()) return;
  if (!journal_.Close(fresh_).has_value()) return;
  space_.Settle(durable_);
  (void)space_.Trim().has_value();
}

// The image learns that it is being changed. What fails is tried again by the next change.
Result<> VhdxLayer::BeginWriting() {
  std::lock_guard flush(flush_mutex_);
  if (writing_) return {};
  TRY(journal_.CheckLog());
  TRY_AS("looking for free space", FindSpace());
  if (!fresh_) {
    TRY(UpdateHeaders(*file_, image_.headers, [](Header& header) {
      header.file_write = MakeImageId({}, "file write");
      header.data_write = MakeImageId({}, "data write");
    }));
  }
  writing_ = true;
  return {};
}

// Marks what regions and blocks use. Refuses an image in which one place is used twice: writing
// would make it worse.
Result<> VhdxLayer::FindSpace() {
  TRY(space_.Open());
  (void)space_.Use({0, kHeaderSection});
  if (Range log = image_.headers.current.log; !log.empty()) (void)space_.Use(log);
  for (const Region& region : image_.regions.all) (void)space_.Use(region.place);
  return ScanBat(*file_, image_.regions.bat, {0, image_.metadata.bat_entries()},
                 [&](uint64_t index, uint64_t raw) { return UseEntry(index, raw); });
}

Result<> VhdxLayer::UseEntry(uint64_t index, uint64_t raw) {
  const uint64_t group = image_.metadata.chunk_ratio() + 1;
  const bool bitmap = index % group == group - 1;
  BatEntry entry = TRY(bitmap ? ParseBitmapEntry(raw, index)
                              : ParsePayloadEntry(raw, index - index / group, has_parent()));
  if (!entry.present() && !entry.keeps_place()) return {};
  Range host{entry.host, bitmap ? kMiB : block_size()};
  TRY(CheckHost("entry", index, host));
  if (space_.Use(host)) return {};
  return Fail(Code::kCorrupt, "BAT: entry {} names {:#x} bytes at {:#x}, which are used already",
              index, host.length, host.offset);
}

}  // namespace platter::vhdx
