// From guest bytes to extents.
//
// A unit that overlaps the headers, or whose sectors lie past the end of the file, is corrupt: to
// answer zeros would be to invent data.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/endian.h"
#include "formats/vhd/vhd_layer.h"

namespace platter::vhd {

uint64_t VhdLayer::SliceOf(uint64_t index) const {
  return image_.header.table_offset + RoundDown(index * 4, slice_bytes_);
}

std::optional<uint64_t> VhdLayer::UnitAt(ConstBytes slice, uint64_t index) const {
  uint32_t entry = *LoadAt<be32>(slice, InSlice(index));
  if (entry == kUnused) return std::nullopt;
  return entry * kSector;
}

Range VhdLayer::BitsOf(Range part) const {
  uint64_t start = RoundDown(part.offset, block_size());
  return Range{part.offset - start, part.length}.Outward(kSector);
}

uint64_t VhdLayer::FileEnd() const {
  return writing_ ? allocator_.file_size() : end_.load(std::memory_order_acquire);
}

Result<size_t> VhdLayer::Map(Range want, std::span<Extent> out) { return Named(MapAll(want, out)); }

size_t VhdLayer::TryMap(Range want, std::span<Extent> out) {
  if (out.empty() || !CheckInside(want).has_value()) return 0;
  Stop stop;
  std::lock_guard lock(map_mutex_);
  return MapLocked(want, out, stop);
}

Result<size_t> VhdLayer::MapAll(Range want, std::span<Extent> out) {
  CHECK(!out.empty());
  TRY(CheckInside(want));
  TableCache::Ref loaded;  // keeps what we waited for in memory until it was looked at
  bool asked_end = false;
  while (true) {
    sched::Yield("map");
    Stop stop;
    {
      std::lock_guard lock(map_mutex_);
      size_t count = MapLocked(want, out, stop);
      if (count > 0) return count;
    }
    if (stop.failure) {
      // Another program may have made the file longer since we looked.
      if (!stop.past_end || asked_end || writing_) {
        return std::unexpected(std::move(*stop.failure));
      }
      const FooterAndSize now = TRY(ReadFooter(*store_, OpenOptions{}));
      end_ = std::max(end_.load(), now.tail.value_or(now.file_size));
      asked_end = true;
      continue;
    }
    loaded = TRY(stop.cache->Get(stop.offset));
  }
}

// As much as is in memory; on 0 `stop` says why.
size_t VhdLayer::MapLocked(Range want, std::span<Extent> out, Stop& stop) {
  ExtentList list(out);
  TableCache::Ref slice;
  for (uint64_t at = want.offset; at < want.end();) {
    uint64_t index = at / block_size();
    if (!slice || slice.offset() != SliceOf(index)) {
      slice = table_->TryGet(SliceOf(index));
      if (!slice) {
        stop.cache = table_.get();
        stop.offset = SliceOf(index);
        break;
      }
    }
    auto unit = UnitAt(slice.bytes(), index);
    if (!unit) {
      if (!MapUnused(slice.bytes(), want, at, list)) break;
      continue;
    }
    Range part = Range::FromTo(at, std::min((index + 1) * block_size(), want.end()));
    if (!MapBlock(part, *unit, list, stop)) break;
    at = part.end();
  }
  return list.size();
}

// The run of unused blocks at `at`, as far as the slice goes; moves `at` behind it.
bool VhdLayer::MapUnused(ConstBytes slice, Range want, uint64_t& at, ExtentList& list) const {
  uint64_t index = at / block_size(), first = InSlice(index) / 4, next = first + 1;
  uint64_t last =
      std::min<uint64_t>(slice_bytes_ / 4, first + DivideUp(want.end(), block_size()) - index);
  while (next < last && *LoadAt<be32>(slice, next * 4) == kUnused) ++next;
  Extent nothing;
  nothing.guest = Range::FromTo(at, std::min((index + (next - first)) * block_size(), want.end()));
  nothing.kind = absent();
  if (!list.Add(nothing)) return false;
  at = nothing.guest.end();
  return true;
}

// `part` of the block at `unit`: runs of sectors that are here or not. False: no further.
bool VhdLayer::MapBlock(Range part, uint64_t unit, ExtentList& list, Stop& stop) {
  const uint64_t index = part.offset / block_size(), end = FileEnd();
  if (auto good = CheckUnit(unit, index, end); !good.has_value()) {
    stop.past_end = unit + bitmap_size() >= end;
    stop.failure = std::move(good.error());
    return false;
  }
  TableCache::Ref bitmap = bitmaps_.TryGet(unit);
  if (!bitmap) {
    stop.cache = &bitmaps_;
    stop.offset = unit;
    return false;
  }
  const uint64_t start = index * block_size(), last = DivideUp(part.end() - start, kSector);
  for (uint64_t at = part.offset; at < part.end();) {
    uint64_t bit = (at - start) / kSector, run = RunOfBits(bitmap.bytes(), bit, last);
    Extent extent;
    extent.guest = Range::FromTo(at, std::min(start + (bit + run) * kSector, part.end()));
    extent.kind = BitAt(bitmap.bytes(), bit) ? Kind::kData : absent();
    if (extent.kind == Kind::kData) {
      uint64_t host = unit + bitmap_size() + (at - start);
      if (host >= end) {
        stop.past_end = true;
        stop.failure.emplace(Code::kCorrupt, 0,
                             fmt::format("block {}: its data at {:#x} lies past the end of the "
                                         "file ({:#x})",
                                         index, host, end));
        return false;
      }
      extent.guest.length = std::min(extent.guest.length, end - host);
      extent.host = {host, extent.guest.length};
      extent.store = store_.get();
      extent.writable = writing_;
    }
    if (!list.Add(extent)) return false;
    at = extent.guest.end();
  }
  return true;
}

Result<> VhdLayer::CheckUnit(uint64_t unit, uint64_t index, uint64_t end) const {
  Range range = UnitRange(image_, unit, index);
  if (unit + bitmap_size() >= end) {
    return Fail(Code::kCorrupt,
                "block {}: its place at {:#x} lies past the end of the file ({:#x})", index, unit,
                end);
  }
  if (const Part* part = FindPart(image_, range)) {
    return Fail(Code::kCorrupt, "block {}: its place at {:#x} overlaps the {} at {:#x}", index,
                unit, part->what, part->range.offset);
  }
  return {};
}

Range UnitRange(const Image& image, uint64_t start, uint64_t index) {
  return {start, image.header.bitmap_size() + RoundUp(image.BlockBytes(index), kSector)};
}

const Part* FindPart(const Image& image, Range range) {
  for (const Part& part : image.parts) {
    if (part.range.Overlaps(range)) return &part;
  }
  return nullptr;
}

}  // namespace platter::vhd
