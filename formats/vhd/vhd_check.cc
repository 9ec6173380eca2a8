// What is repaired. With "leaks": a file that goes on behind its last block is cut, and gets its
// footer back, and the footer's copy follows it; that is what a crash leaves. With "all" also: a
// footer or its copy from the other one; entries that name a place without guest data (past the end
// of the file, inside the headers, or behind the end of the disk) become "unused"; the batmap
// follows the sector bitmaps. Blocks that overlap stay: nobody knows whose the bytes are.
#include "formats/vhd/vhd_check.h"

#include <algorithm>
#include <array>
#include <utility>

#include "formats/signatures.h"
#include "formats/vhd/vhd_create.h"
#include "formats/vhd/vhd_image.h"

namespace platter::vhd {
namespace {

constexpr auto kLeak = CheckReport::Finding::kLeak;
constexpr auto kCorruption = CheckReport::Finding::kCorruption;

class Checker {
 public:
  Checker(Store& store, Image image, const CheckOptions& options)
      : store_(store), image_(std::move(image)), mode_(options.repair) {}

  Result<CheckReport> Run() {
    Survey survey = TRY(ReadTable(store_, image_));
    report_.total_units = image_.blocks();
    TRY(CheckCopy());
    TRY(CheckUnits(survey));
    TRY(CheckBatmap(survey));
    TRY(CheckEnd(survey));
    report_.image_end = used_end_ + kSector;
    if (mode_ != CheckOptions::kNone) TRY(store_.Sync());
    return std::move(report_);
  }

 private:
  bool Mends(CheckOptions::Repair least) const { return mode_ >= least; }

  Result<> CheckCopy() {
    if (image_.copy_good) return {};
    // An earlier state of the same footer, which is at the end by now: a crash leaves that, too.
    std::array<std::byte, kSector> first{};
    TRY(store_.Read(0, Bytes(first)));
    const auto copy = ParseFooter(first);
    const bool old = copy && copy->id == image_.footer.id;
    const bool fix = Mends(old ? CheckOptions::kLeaks : CheckOptions::kAll);
    if (fix) {
      TRY(store_.Write(0, AsBytes(EncodeFooter(image_.footer))));
      TRY(store_.Sync());
    }
    report_.Add(old ? kLeak : kCorruption,
                old ? "copy of the footer at 0: not yet as the one at the end"
                    : "copy of the footer at 0: damaged, or not the same as at the end",
                fix);
    return {};
  }

  // What is wrong with the place of one block by itself, or "".
  std::string Fault(const Survey::Unit& unit) const {
    const uint64_t start = unit.sector * kSector;
    const Range range = UnitRange(image_, start, unit.block);
    if (unit.block >= image_.blocks()) {
      return fmt::format("the disk ends before it (it has {} blocks)", image_.blocks());
    }
    if (const Part* part = FindPart(image_, range)) {
      return fmt::format("its place at {:#x} overlaps the {} at {:#x}", start, part->what,
                         part->range.offset);
    }
    const uint64_t limit = image_.data_end();
    if (range.end() > limit) {
      return fmt::format("its place {:#x} to {:#x} reaches past the end of the file ({:#x})", start,
                         range.end(), limit);
    }
    return {};
  }

  // Removes from `survey` what is no place for a block.
  Result<> CheckUnits(Survey& survey) {
    std::vector<Survey::Unit> good;
    for (const Survey::Unit& unit : survey.units) {
      std::string fault = Fault(unit);
      if (fault.empty()) {
        if (!good.empty()) CheckOverlap(good.back(), unit);
        good.push_back(unit);
        continue;
      }
      // A block that the file holds in part keeps what is there.
      const bool holds = HoldsSomething(unit);
      cut_ |= holds;
      bool drop = Mends(CheckOptions::kAll) && !holds;
      if (drop) {
        const be32 unused(kUnused);
        TRY(store_.Write(image_.header.table_offset + unit.block * uint64_t{4}, AsBytes(unused)));
      }
      report_.Add(kCorruption,
                  fmt::format("block allocation table entry {}: {}", unit.block, fault), drop);
    }
    survey.units = std::move(good);
    report_.allocated_units = survey.units.size();
    return {};
  }

  bool HoldsSomething(const Survey::Unit& unit) const {
    uint64_t start = unit.sector * kSector;
    return unit.block < image_.blocks() &&
           !FindPart(image_, UnitRange(image_, start, unit.block)) &&
           start + image_.header.bitmap_size() < image_.data_end();
  }

  void CheckOverlap(const Survey::Unit& before, const Survey::Unit& unit) {
    uint64_t start = before.sector * kSector, next = unit.sector * kSector;
    if (UnitRange(image_, start, before.block).end() <= next) {
      if (unit.block < before.block) ++report_.fragmented_units;
      return;
    }
    report_.Add(kCorruption,
                fmt::format("block {}: its place at {:#x} overlaps that of block {} at {:#x}",
                            unit.block, next, before.block, start));
  }

  // A bit of the batmap says that all bits of the block's bitmap are set.
  Result<> CheckBatmap(const Survey& survey) {
    if (image_.batmap.empty()) return {};
    bool changed = false;
    const uint64_t sectors = image_.header.block_size / kSector;
    std::vector<std::byte> bitmap(image_.header.bitmap_size());
    for (const Survey::Unit& unit : survey.units) {
      if (!BitAt(image_.batmap, unit.block)) continue;
      TRY_AS("sector bitmap", store_.Read(unit.sector * kSector, Bytes(bitmap)));
      if (BitAt(bitmap, 0) && RunOfBits(bitmap, 0, sectors) == sectors) continue;
      report_.Add(kCorruption,
                  fmt::format("batmap: it calls block {} full, and its sector bitmap at {:#x} does "
                              "not",
                              unit.block, unit.sector * kSector),
                  Mends(CheckOptions::kAll));
      SetBits(image_.batmap, unit.block, unit.block + uint64_t{1}, false);
      changed = true;
    }
    if (!image_.batmap_good) {
      report_.Add(kCorruption, "batmap: its checksum is wrong", Mends(CheckOptions::kAll));
    }
    if ((changed || !image_.batmap_good) && Mends(CheckOptions::kAll)) TRY(WriteBatmap());
    return {};
  }

  Result<> WriteBatmap() {
    const uint64_t header = image_.header.table().end();
    const be32 sum(ChecksumOf(image_.batmap, image_.batmap.size()));
    for (const Part& part : image_.parts) {
      if (part.what == "batmap") TRY(store_.Write(part.range.offset, image_.batmap));
    }
    return store_.Write(header + offsetof(DiskBatmap, checksum), AsBytes(sum));
  }

  // Behind the last block comes the footer.
  Result<> CheckEnd(const Survey& survey) {
    for (const Part& part : image_.parts) used_end_ = std::max(used_end_, part.range.end());
    for (const Survey::Unit& unit : survey.units) {
      uint64_t end = UnitRange(image_, unit.sector * kSector, unit.block).end();
      used_end_ = std::max(used_end_, end);
    }
    const uint64_t limit = image_.data_end();
    if (cut_) used_end_ = limit;
    const uint64_t unused = limit > used_end_ ? limit - used_end_ : 0;
    if (image_.tail && unused < image_.header.unit()) {
      used_end_ = limit;
      return {};
    }
    // A device goes on behind an image as it likes.
    const bool device = store_.caps().block_device;
    const bool damaged = !image_.tail && !device && TRY(LooksLikeFooter());
    if (device && !damaged) return {};
    // Behind a block that is cut, a footer would say that nothing is missing.
    bool mend = !cut_ && Mends(damaged ? CheckOptions::kAll : CheckOptions::kLeaks);
    if (mend) TRY(PutFooter());
    if (damaged) {
      report_.Add(kCorruption, "footer at the end of the file: its checksum is wrong", mend);
    } else if (!image_.tail) {
      report_.Add(kLeak,
                  fmt::format("footer: missing behind the last block, at {:#x} ({} bytes follow); "
                              "the copy at the start stands in",
                              used_end_, unused),
                  mend);
    } else {
      report_.Add(
          kLeak, fmt::format("{} bytes from {:#x} on belong to no block", unused, used_end_), mend);
    }
    return {};
  }

  Result<bool> LooksLikeFooter() {
    const Ends ends = TRY(ReadEnds(store_));
    return ends.size >= 2 * kSector && HasFooterCookie(ConstBytes(ends.tail));
  }

  Result<> PutFooter() {
    used_end_ = RoundUp(used_end_, kSector);
    const DiskFooter footer = EncodeFooter(image_.footer);
    TRY(store_.Write(used_end_, AsBytes(footer)));
    TRY(store_.Sync());
    return store_.Resize(used_end_ + kSector);
  }

  Store& store_;
  Image image_;
  const CheckOptions::Repair mode_;
  uint64_t used_end_ = 0;  // bytes: of the last used part of the file
  bool cut_ = false;       // the file ends inside a block
  CheckReport report_;
};

}  // namespace

Result<CheckReport> CheckVhd(Store& store, const OpenOptions& open, const CheckOptions& options) {
  if (options.repair != CheckOptions::kNone && !store.writable()) {
    return Fail(Code::kReadOnly, "repair: opened for reading only");
  }
  FooterAndSize fixed = TRY(ReadFooter(store, open));
  if (fixed.footer.type == DiskType::kFixed) {
    // All there is to check is whether it opens.
    CheckReport report;
    report.image_end = fixed.size.bytes + kSector;
    return report;
  }
  OpenedImage opened = TRY(ReadImage(store, open));
  return Checker(store, std::move(opened.image), options).Run();
}

}  // namespace platter::vhd
