#include "formats/vhdx/vhdx_check.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "formats/vhdx/vhdx_bat_scan.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_image.h"
#include "formats/vhdx/vhdx_space.h"

namespace platter::vhdx {
namespace {

using Finding = CheckReport::Finding;

// What the BAT names, and whether it can be so.
class BatCheck {
 public:
  BatCheck(Store& file, const Image& image, uint64_t file_size, CheckReport& report)
      : file_(file),
        image_(image),
        metadata_(image.metadata),
        size_(file_size),
        report_(report),
        space_(file, pins_) {}

  // MiB behind the last one that is used, in bytes.
  Result<uint64_t> Run() {
    TRY(space_.Open());
    Take({0, kHeaderSection});
    if (!image_.headers.current.log.empty()) Take(image_.headers.current.log);
    for (const Region& region : image_.regions.all) Take(region.place);
    const Range all{0, metadata_.bat_entries()};
    TRY(ScanBat(file_, image_.regions.bat, all, [&](uint64_t index, uint64_t raw) -> Result<> {
      Look(index, raw);
      return {};
    }));
    EndChunk();
    TRY(NameOwners(all));
    report_.total_units = metadata_.blocks();
    report_.image_end = end_;
    return end_;
  }

 private:
  struct Conflict {
    uint64_t index;
    Range host;
    bool named = false;
  };

  void Take(Range place) {
    (void)space_.Use(place);
    end_ = std::max(end_, RoundUp(place.end(), kAlign));
  }

  bool IsBitmap(uint64_t index) const {
    return index % (metadata_.chunk_ratio() + 1) == metadata_.chunk_ratio();
  }
  std::string Name(uint64_t index) const {
    const uint64_t group = metadata_.chunk_ratio() + 1;
    if (IsBitmap(index)) return fmt::format("sector bitmap {}", index / group);
    return fmt::format("block {}", index - index / group);
  }
  Result<BatEntry> Parse(uint64_t index, uint64_t raw) const {
    if (IsBitmap(index)) return ParseBitmapEntry(raw, index);
    return ParsePayloadEntry(raw, index - index / (metadata_.chunk_ratio() + 1),
                             metadata_.has_parent);
  }
  uint64_t LengthOf(uint64_t index) const { return IsBitmap(index) ? kMiB : metadata_.block_size; }

  void Look(uint64_t index, uint64_t raw) {
    const uint64_t chunk = index / (metadata_.chunk_ratio() + 1);
    if (chunk != chunk_) EndChunk();
    chunk_ = chunk;
    auto entry = Parse(index, raw);
    if (!entry.has_value()) {
      report_.Add(Finding::kCorruption, entry.error().text());
      return;
    }
    if (IsBitmap(index) && entry->present()) has_bitmap_ = true;
    if (entry->state == BlockState::kPartiallyPresent && !partial_) partial_ = index;
    if (!entry->present() && !entry->keeps_place()) return;
    Range host{entry->host, LengthOf(index)};
    if (!FitsIn(host.offset, host.length, size_)) {
      report_.Add(Finding::kCorruption,
                  fmt::format("BAT: {} at {:#x} ends past the end of the file ({:#x})", Name(index),
                              host.offset, size_));
      return;
    }
    if (!IsBitmap(index) && entry->present()) {
      ++report_.allocated_units;
      if (previous_end_ != 0 && previous_end_ != host.offset) ++report_.fragmented_units;
      previous_end_ = host.end();
    }
    if (!space_.Use(host)) {
      if (conflicts_.size() < kMostConflicts) conflicts_.push_back({index, host});
      ++conflict_count_;
    }
    end_ = std::max(end_, host.end());
  }

  // A chunk with a partially present block needs its bitmap.
  void EndChunk() {
    if (partial_ && !has_bitmap_) {
      report_.Add(
          Finding::kCorruption,
          fmt::format("BAT: {} is partially present, and has no sector bitmap", Name(*partial_)));
    }
    partial_.reset();
    has_bitmap_ = false;
  }

  // Whose place it is that another entry names as well.
  Result<> NameOwners(Range all) {
    if (conflicts_.empty()) return {};
    auto add = [&](Conflict& conflict, const std::string& owner) {
      report_.Add(Finding::kCorruption,
                  fmt::format("BAT: {} at {:#x} lies where {} is", Name(conflict.index),
                              conflict.host.offset, owner));
      conflict.named = true;
    };
    for (Conflict& conflict : conflicts_) {
      if (conflict.host.offset < kHeaderSection) add(conflict, "the header section");
      if (conflict.host.Overlaps(image_.headers.current.log)) add(conflict, "the log");
      for (const Region& region : image_.regions.all) {
        if (!conflict.host.Overlaps(region.place)) continue;
        add(conflict, fmt::format("region {}", GuidText(region.id)));
      }
    }
    TRY(ScanBat(file_, image_.regions.bat, all, [&](uint64_t index, uint64_t raw) -> Result<> {
      auto entry = Parse(index, raw);
      if (!entry.has_value() || (!entry->present() && !entry->keeps_place())) return {};
      Range host{entry->host, LengthOf(index)};
      for (Conflict& conflict : conflicts_) {
        if (conflict.named || conflict.index <= index || !host.Overlaps(conflict.host)) continue;
        add(conflict, Name(index));
      }
      return {};
    }));
    // Counted, not named.
    for (uint64_t i = conflicts_.size(); i < conflict_count_; ++i) {
      report_.Add(Finding::kCorruption, "BAT: a further entry names a place that is used already");
    }
    return {};
  }

  static constexpr size_t kMostConflicts = 100;

  Store& file_;
  const Image& image_;
  const Metadata& metadata_;
  const uint64_t size_;
  CheckReport& report_;
  PinSet pins_;
  SpaceMap space_;
  uint64_t end_ = 0;
  uint64_t chunk_ = 0, previous_end_ = 0, conflict_count_ = 0;
  std::optional<uint64_t> partial_;  // index of the first such block of the chunk
  bool has_bitmap_ = false;
  std::vector<Conflict> conflicts_;
};

// The copies that are bad, and with `repair` their replacement.
Result<> CheckCopies(Store& store, Image& image, bool repair, CheckReport& report) {
  constexpr const char* kNames[] = {"first", "second"};
  bool bad_header = false;
  for (int i = 0; i < 2; ++i) {
    if (image.headers.problems[i].empty()) continue;
    bad_header = true;
    report.Add(Finding::kCorruption,
               fmt::format("{} header: {}", kNames[i], image.headers.problems[i]), repair);
  }
  if (bad_header && repair) TRY(UpdateHeaders(store, image.headers, [](Header&) {}));
  for (int i = 0; i < 2; ++i) {
    if (image.region_problems[i].empty()) continue;
    report.Add(Finding::kCorruption,
               fmt::format("{} region table: {}", kNames[i], image.region_problems[i]), repair);
    if (!repair) continue;
    std::vector<std::byte> good(kRegionTableBytes);
    TRY(store.Read(kRegionTableOffsets[1 - i], Bytes(good)));
    TRY(store.Write(kRegionTableOffsets[i], ConstBytes(good)));
    TRY(store.Sync());
  }
  return {};
}

}  // namespace

Result<CheckReport> CheckVhdx(Store& store, const OpenOptions& open, const CheckOptions& options) {
  (void)open;
  const bool repair = options.repair != CheckOptions::kNone;
  if (repair && !store.writable()) return Fail(Code::kReadOnly, "repair: opened for reading only");
  CheckReport report;
  std::unique_ptr<ReplayedStore> replayed;
  Image image = TRY(ReadImage(store, replayed));
  if (!IsNil(image.headers.current.log_id)) {
    report.Add(Finding::kLeak,
               fmt::format("log at {:#x}: {} entries are to be replayed",
                           image.headers.current.log.offset, image.replayed_entries),
               repair);
    if (repair) TRY(FinishReplay(store, image, std::move(replayed)));
  }
  Store& file = replayed ? static_cast<Store&>(*replayed) : store;
  TRY(CheckCopies(store, image, options.repair == CheckOptions::kAll, report));
  const uint64_t size = TRY(file.Size());
  const uint64_t end = TRY(BatCheck(file, image, size, report).Run());
  // With a block that reaches past the end of the file, what is behind `end` may be a part of it.
  if (end < size && report.corruptions == 0 && !store.caps().block_device) {
    report.Add(Finding::kLeak,
               fmt::format("{:#x} bytes at {:#x}, up to the end of the file, belong to nothing",
                           size - end, end),
               repair);
    if (repair) {
      TRY(store.Resize(end));
      TRY(store.Sync());
    }
  }
  return report;
}

}  // namespace platter::vhdx
