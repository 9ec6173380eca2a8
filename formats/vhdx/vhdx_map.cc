// From guest bytes to extents.
#include <algorithm>
#include <bit>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/endian.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_layer.h"
#include "formats/vhdx/vhdx_slices.h"

namespace platter::vhdx {

namespace {

// How many bits from `first` on, up to `end`, are what bit `first` is.
uint64_t RunOfBits(ConstBytes bits, uint64_t first, uint64_t end) {
  auto bit = [&](uint64_t i) {
    return (std::to_integer<unsigned>(bits[i / 8]) >> (i % 8) & 1) != 0;
  };
  const bool value = bit(first);
  const uint64_t same = value ? ~uint64_t{0} : 0;
  uint64_t at = first;
  while (at < end) {
    if (at % 64 == 0 && end - at >= 64 && *LoadAt<le64>(bits, at / 8) == same) {
      at += 64;
    } else if (bit(at) == value) {
      ++at;
    } else {
      break;
    }
  }
  return at - first;
}

}  // namespace

Result<> VhdxLayer::CheckInside(Range want) const {
  if (!want.empty() && FitsIn(want.offset, want.length, info_.size)) return {};
  return Fail(Code::kOutOfRange, "{:#x} bytes at {:#x} are not inside the disk of {:#x} bytes",
              want.length, want.offset, info_.size);
}

Result<size_t> VhdxLayer::Map(Range want, std::span<Extent> out) {
  return Named(MapAll(want, out));
}

size_t VhdxLayer::TryMap(Range want, std::span<Extent> out) {
  if (out.empty() || !CheckInside(want).has_value()) return 0;
  Stop stop;
  std::lock_guard lock(map_mutex_);
  return MapLocked(want, out, stop);
}

Result<size_t> VhdxLayer::MapAll(Range want, std::span<Extent> out) {
  CHECK(!out.empty());
  TRY(CheckInside(want));
  // Keep what we waited for in memory until it was looked at: a lookup needs up to three slices.
  std::vector<TableCache::Ref> loaded;
  while (true) {
    sched::Yield("map");
    Stop stop;
    {
      std::lock_guard lock(map_mutex_);
      size_t count = MapLocked(want, out, stop);
      if (count > 0) return count;
    }
    if (stop.failure) return std::unexpected(std::move(*stop.failure));
    loaded.push_back(TRY(tables_.Get(*stop.missing)));
  }
}

// As much as is in memory; on 0 `stop` says why.
size_t VhdxLayer::MapLocked(Range want, std::span<Extent> out, Stop& stop) {
  ExtentList list(out);
  for (uint64_t at = want.offset; at < want.end();) {
    uint64_t block = at / block_size();
    Range part = Range{block * block_size(), block_size()}.Intersect(Range::FromTo(at, want.end()));
    if (!MapBlock(block, part, list, stop)) break;
    at = part.end();
  }
  return list.size();
}

TableCache::Ref VhdxLayer::Slice(uint64_t offset, Stop& stop) {
  TableCache::Ref slice = tables_.TryGet(offset);
  if (!slice) stop.missing = offset;
  return slice;
}

std::optional<uint64_t> VhdxLayer::RawEntry(uint64_t index, Stop& stop) {
  const uint64_t at = index * 8;
  TableCache::Ref slice = Slice(image_.regions.bat.offset + RoundDown(at, kSliceBytes), stop);
  if (!slice) return std::nullopt;
  return *LoadAt<le64>(slice.bytes(), at % kSliceBytes);
}

// `part` of a block. False: no further.
bool VhdxLayer::MapBlock(uint64_t block, Range part, ExtentList& list, Stop& stop) {
  auto raw = RawEntry(image_.metadata.PayloadIndex(block), stop);
  if (!raw) return false;
  auto entry = ParsePayloadEntry(*raw, block, has_parent());
  if (!entry.has_value()) {
    stop.failure = std::move(entry.error());
    return false;
  }
  if (!entry->present()) {
    // Undefined and unmapped blocks may read as anything: as zeros.
    const bool absent = entry->state == BlockState::kNotPresent;
    Extent nothing;
    nothing.guest = part;
    nothing.kind = !has_parent() ? Kind::kHole : absent ? Kind::kParent : Kind::kZero;
    return list.Add(nothing);
  }
  const uint64_t skip = part.offset - block * block_size();
  // From the block's start on: a place near 2^64 must not wrap.
  Result<> good = CheckHost("block", block, {entry->host, skip + part.length});
  if (!good.has_value()) {
    stop.failure = std::move(good.error());
    return false;
  }
  if (entry->state == BlockState::kPartiallyPresent) {
    return MapPartial(block, entry->host, part, list, stop);
  }
  return list.Add(DataExtent(part, entry->host + skip));
}

Extent VhdxLayer::DataExtent(Range guest, uint64_t host) const {
  Extent extent;
  extent.guest = guest;
  extent.kind = Kind::kData;
  extent.writable = writing_;
  extent.store = file_;
  extent.host = {host, guest.length};
  return extent;
}

VhdxLayer::BitPlace VhdxLayer::LocateBit(uint64_t bitmap_host, uint64_t guest) const {
  const uint64_t bit = guest / sector() % kSectorsPerBitmap;
  return {bitmap_host + RoundDown(bit / 8, kSliceBytes), bit % (kSliceBytes * 8)};
}

bool VhdxLayer::MapPartial(uint64_t block, uint64_t host, Range part, ExtentList& list,
                           Stop& stop) {
  const uint64_t index = image_.metadata.BitmapIndex(block);
  auto raw = RawEntry(index, stop);
  if (!raw) return false;
  auto bitmap = ParseBitmapEntry(*raw, index);
  Result<> good = bitmap.has_value() ? CheckHost("sector bitmap of block", block,
                                                 {bitmap->host, bitmap->present() ? kMiB : 0})
                                     : Result<>(std::unexpected(std::move(bitmap.error())));
  if (good.has_value() && !bitmap->present()) {
    good =
        Fail(Code::kCorrupt, "BAT: block {} is partially present, and has no sector bitmap", block);
  }
  if (!good.has_value()) {
    stop.failure = std::move(good.error());
    return false;
  }
  // The bits of one block lie in one slice.
  BitPlace place = LocateBit(bitmap->host, part.offset);
  TableCache::Ref slice = Slice(place.slice, stop);
  if (!slice) return false;
  const uint64_t first = RoundDown(part.offset, sector());
  for (uint64_t at = part.offset; at < part.end();) {
    uint64_t bit = place.bit + (at - first) / sector();
    uint64_t end_bit = place.bit + DivideUp(part.end() - first, sector());
    uint64_t run = RunOfBits(slice.bytes(), bit, end_bit);
    uint64_t end = std::min(RoundDown(at, sector()) + run * sector(), part.end());
    const bool here = (std::to_integer<unsigned>(slice.bytes()[bit / 8]) >> (bit % 8) & 1) != 0;
    Extent extent = DataExtent(Range::FromTo(at, end), host + (at - block * block_size()));
    if (!here) {
      extent = Extent();
      extent.guest = Range::FromTo(at, end);
      extent.kind = Kind::kParent;
    }
    if (!list.Add(extent)) return false;
    at = end;
  }
  return true;
}

// Whether a payload or bitmap block may lie at `host`: in the file, where nothing else is.
Result<> VhdxLayer::CheckHost(std::string_view what, uint64_t number, Range host) const {
  if (host.empty()) return {};
  if (!FitsIn(host.offset, host.length, FileSize())) {
    return Fail(Code::kCorrupt, "BAT: {} {} at {:#x} ends past the end of the file ({:#x})", what,
                number, host.offset, FileSize());
  }
  std::string_view owner;
  if (host.offset < kHeaderSection) owner = "the header section";
  if (host.Overlaps(log_)) owner = "the log";
  for (const Region& region : image_.regions.all) {
    if (!host.Overlaps(region.place)) continue;
    owner = region.id == kBatRegion ? "the BAT" : "a metadata region";
  }
  if (owner.empty()) return {};
  return Fail(Code::kCorrupt, "BAT: {} {} is said to lie at {:#x}, which holds {}", what, number,
              host.offset, owner);
}

}  // namespace platter::vhdx
