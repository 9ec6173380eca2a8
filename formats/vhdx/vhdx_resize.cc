// Resize. Exclusive: cow/Disk keeps everybody else out. The step that decides is always one entry
// of the log: before it the image has the old size, after it the new one. It changes the disk's
// size and, where the BAT has to move, both region tables.
//
// Entries of the BAT behind those of the disk mean nothing. They may hold what an interrupted
// shrink, or another program, left there; so growing clears them before they could be seen. What a
// longer parent holds past the old end is for cow/Disk, which zeroes it.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/endian.h"
#include "formats/preallocate.h"
#include "formats/vhdx/vhdx_bat_scan.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_layer.h"
#include "formats/vhdx/vhdx_slices.h"

namespace platter::vhdx {

Result<> VhdxLayer::Resize(uint64_t size, Preallocation preallocation) {
  return Named(ResizeTo(size, preallocation).WithPrefix("resizing"));
}

Result<> VhdxLayer::ResizeTo(uint64_t size, Preallocation preallocation) {
  if (!info_.writable) return Fail(Code::kReadOnly, "opened for reading");
  if (!IsAligned(size, sector()) || size == 0) {
    return Fail(Code::kOutOfRange, "{} bytes are no multiple of the sector size, {}", size,
                sector());
  }
  if (size > kMostDiskSize) {
    return Fail(Code::kOutOfRange, "{} bytes; {} are the most", size, kMostDiskSize);
  }
  if (preallocation != Preallocation::kOff && !image_.metadata.leave_allocated) {
    return Fail(Code::kUnsupported,
                "preallocation: a dynamic VHDX has blocks for what it holds only");
  }
  if (size == info_.size) return {};
  TRY(CheckDecided());
  TRY(writing_ ? Result<>() : BeginWriting());
  TRY(Flush());
  return size > info_.size ? Grow(size, preallocation) : Shrink(size);
}

Result<> VhdxLayer::Grow(uint64_t size, Preallocation preallocation) {
  const Metadata& metadata = image_.metadata;
  const uint64_t old_blocks = metadata.blocks(), entries = metadata.BatEntries(size);
  const Range old_bat = image_.regions.bat;
  TRY(ZeroTail());
  TRY(ClearEntries(old_blocks, std::min(entries, old_bat.length / 8), metadata.bat_entries()));
  TRY(Flush());
  std::vector<LogPage> pages;
  Regions regions = image_.regions;
  if (entries * 8 > old_bat.length) TRY(MoveBat(RoundUp(entries * 8, kAlign), regions, pages));
  TRY(CommitSize(size, std::move(pages)));
  if (regions.bat != old_bat) {
    std::lock_guard lock(map_mutex_);
    for (uint64_t at = old_bat.offset; at < old_bat.end(); at += kSliceBytes) tables_.Forget(at);
    image_.regions = std::move(regions);
    space_.GiveBack(old_bat);
  }
  // In an image that keeps all its blocks the new ones are there from the start. What a crash
  // before that leaves unallocated reads as zeros all the same.
  return metadata.leave_allocated ? AllocateFrom(old_blocks, preallocation) : Result<>();
}

Result<> VhdxLayer::Shrink(uint64_t size) {
  const uint64_t entries = image_.metadata.bat_entries();
  TRY(CommitSize(size, {}));
  TRY(ClearEntries(image_.metadata.blocks(), entries, entries));
  return Flush();
}

// What the disk's last block holds past the disk's end becomes zeros: the larger disk shows it.
Result<> VhdxLayer::ZeroTail() {
  const uint64_t used = info_.size % block_size();
  if (used == 0) return {};
  BatEntry last = TRY(ReadEntry(info_.size / block_size()));
  if (!last.present()) return {};
  return file_->Zero({last.host + used, block_size() - used}, /*may_unmap=*/true);
}

// Entries from that of `first_block` on, up to entry `end`, name nothing any more; nor do those of
// sector bitmaps that no block before needs. What entries before `known` named is free then.
Result<> VhdxLayer::ClearEntries(uint64_t first_block, uint64_t end, uint64_t known) {
  const Range bat = image_.regions.bat;
  const uint64_t ratio = image_.metadata.chunk_ratio();
  const uint64_t first = image_.metadata.PayloadIndex(first_block);
  if (first >= end) return {};
  auto clear = [&](uint64_t index, uint64_t raw) -> Result<> {
    const bool bitmap = index % (ratio + 1) == ratio;
    if (bitmap && index / (ratio + 1) * ratio < first_block) return {};
    TRY(MakeRoom(1));
    TableCache::Ref slice = TRY(tables_.Get(SliceOf(bat.offset + index * 8)));
    uint64_t generation = 0;
    {
      std::lock_guard lock(map_mutex_);
      EditLocked(bat.offset + index * 8, AsBytes(le64(0)));
      generation = generation_;
    }
    BatEntry old{static_cast<BlockState>(raw & kStateMask), raw & kOffsetMask};
    if (index < known && (old.present() || old.keeps_place())) {
      space_.Retire({old.host, bitmap ? kMiB : block_size()}, generation, /*punch=*/true);
    }
    return {};
  };
  // Everything was flushed, so the file has what is in memory.
  return ScanBat(*file_, bat, Range::FromTo(first, end), clear);
}

// Blocks for all of the disk from `block` on.
Result<> VhdxLayer::AllocateFrom(uint64_t block, Preallocation preallocation) {
  for (uint64_t at = block * block_size(); at < info_.size;) {
    Range part = ReservableBlocks(Range::FromTo(at, info_.size)).Outward(block_size());
    SpaceMap::Run run = TRY(space_.Allocate(block_size(), part.length / block_size()));
    if (!run.zeroed) TRY(file_->Zero(run.host, /*may_unmap=*/false));
    TRY(PreallocateBytes(*file_, run.host, preallocation));
    std::vector<Update> updates;
    for (uint64_t done = 0; done < run.host.length; done += block_size(), at += block_size()) {
      BatEntry entry{BlockState::kFullyPresent, run.host.offset + done};
      updates.push_back({.block = at / block_size(), .entry = entry, .present = {}, .old = {}});
    }
    auto slices = TRY(HoldSlices(Range::FromTo(part.offset, at)));
    TRY(Apply(updates));
  }
  return Flush();
}

// A longer BAT at another place, with what the old one says; `pages` make both region tables name
// it. Nothing is dirty.
Result<> VhdxLayer::MoveBat(uint64_t bytes, Regions& regions, std::vector<LogPage>& pages) {
  SpaceMap::Run run = TRY(space_.Allocate(bytes, 1));
  if (!run.zeroed) TRY(file_->Zero(run.host, /*may_unmap=*/true));
  // Only what is not 0 has to be copied.
  TRY(ScanBat(*file_, regions.bat, {0, image_.metadata.bat_entries()},
              [&](uint64_t index, uint64_t raw) -> Result<> {
                return file_->Write(run.host.offset + index * 8, AsBytes(le64(raw)));
              }));
  regions.bat = run.host;
  for (Region& region : regions.all) {
    if (region.id == kBatRegion) region.place = run.host;
  }
  const std::vector<std::byte> table = BuildRegions(regions.all);
  for (uint64_t offset : kRegionTableOffsets) {
    std::vector<std::byte> old(table.size());
    TRY_AS("region table", file_->Read(offset, Bytes(old)));
    for (uint64_t at = 0; at < table.size(); at += kLogSector) {
      ConstBytes page = ConstBytes(table).subspan(at, kLogSector);
      if (std::ranges::equal(page, ConstBytes(old).subspan(at, kLogSector))) continue;
      pages.push_back({offset + at, {page.begin(), page.end()}});
    }
  }
  return {};
}

// The disk has `size` bytes, and what `pages` say is so, at one moment.
Result<> VhdxLayer::CommitSize(uint64_t size, std::vector<LogPage> pages) {
  const uint64_t at = image_.regions.metadata.offset + image_.metadata.disk_size_offset;
  const Range touched = Range{at, sizeof(le64)}.Outward(kLogSector);
  std::vector<std::byte> bytes(touched.length);
  TRY_AS("metadata", file_->Read(touched.offset, Bytes(bytes)));
  StoreAt(Bytes(bytes), at - touched.offset, le64(size));
  for (uint64_t i = 0; i < bytes.size(); i += kLogSector) {
    ConstBytes page = ConstBytes(bytes).subspan(i, kLogSector);
    pages.push_back({touched.offset + i, {page.begin(), page.end()}});
  }
  {
    std::lock_guard flush(flush_mutex_);
    TRY(FlushLocked());
    undecided_ = true;
    TRY(FlushLocked(std::move(pages)));
    undecided_ = false;
  }
  std::lock_guard lock(map_mutex_);
  info_.size = image_.metadata.disk_size = size;
  return {};
}

}  // namespace platter::vhdx
