// From guest bytes to extents, and the access to the block map that writing shares.
//
// A block that the file holds in part is mapped as far as it is there: writers of VDI write whole
// blocks, so what is missing has been cut off, and to answer zeros would be to invent data.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/vdi/vdi_layer.h"

namespace platter::vdi {

uint64_t VdiLayer::SliceEnd(uint64_t guest) const {
  uint64_t span = uint64_t{kSliceEntries} * header_.block_size;
  return std::min(RoundDown(guest, span) + span, info_.size);
}

uint64_t VdiLayer::DataEnd() const {
  return allocator_ ? allocator_->file_size() : data_end_.load(std::memory_order_acquire);
}

Result<size_t> VdiLayer::Map(Range want, std::span<Extent> out) { return Named(MapAll(want, out)); }

size_t VdiLayer::TryMap(Range want, std::span<Extent> out) {
  if (out.empty() || !CheckInside(want).has_value()) return 0;
  Stop stop;
  std::lock_guard lock(map_mutex_);
  return MapLocked(want, out, stop);
}

Result<size_t> VdiLayer::MapAll(Range want, std::span<Extent> out) {
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
    if (stop.missing) {
      loaded = TRY(map_->table.Get(*stop.missing));
      continue;
    }
    // Another program may have made the file longer since we looked.
    if (asked_end) return std::unexpected(std::move(*stop.failure));
    data_end_ = std::max(data_end_.load(), TRY(file_->Size()));
    asked_end = true;
  }
}

// As much as is in memory; on 0 `stop` says why.
size_t VdiLayer::MapLocked(Range want, std::span<Extent> out, Stop& stop) {
  ExtentList list(out);
  for (uint64_t at = want.offset; at < want.end();) {
    auto slice = map_->table.TryGet(SliceOf(BlockOf(at)));
    if (!slice) {
      stop.missing = SliceOf(BlockOf(at));
      break;
    }
    Range part = Range::FromTo(at, std::min(SliceEnd(at), want.end()));
    if (!MapSlice(slice.bytes(), part, list, stop)) break;
    at = part.end();
  }
  return list.size();
}

// Maps `part`, all of which is in one slice. False: no further.
bool VdiLayer::MapSlice(ConstBytes slice, Range part, ExtentList& list, Stop& stop) const {
  const uint64_t data_end = DataEnd();
  const bool writable = writing_.load(std::memory_order_acquire);
  uint32_t block = BlockOf(part.offset);
  for (uint64_t at = part.offset; at < part.end(); ++block) {
    const uint32_t entry = *LoadAt<le32>(slice, block % kSliceEntries * 4);
    Extent extent;
    extent.guest = Range::FromTo(at, std::min(BlockRange(block).end(), part.end()));
    if (IsHostBlock(entry)) {
      uint64_t host = header_.HostBlock(entry).offset + at % header_.block_size;
      if (host >= data_end) {
        stop.failure = std::move(
            Fail(Code::kCorrupt,
                 "block {} is in host block {}, whose bytes at {:#x} lie past the end of the file "
                 "({:#x})",
                 block, entry, host, data_end)
                .error());
        return false;
      }
      extent.kind = Kind::kData;
      extent.guest.length = std::min(extent.guest.length, data_end - host);
      extent.writable = writable;
      extent.store = file_.get();
      extent.host = {host, extent.guest.length};
    } else if (entry == kDiscarded) {
      extent.kind = Kind::kZero;
    } else {
      extent.kind = header_.differencing() ? Kind::kParent : Kind::kHole;
    }
    if (!list.Add(extent)) return false;
    at = extent.guest.end();
    // The block goes on past the end of the file.
    if (at < part.end() && at % header_.block_size != 0) return false;
  }
  return true;
}

Result<TableCache::Ref> VdiLayer::LoadSlice(uint64_t guest) {
  return map_->table.Get(SliceOf(BlockOf(guest)));
}

std::vector<uint32_t> VdiLayer::ReadEntries(const TableCache::Ref& slice, Range part) {
  std::lock_guard lock(map_mutex_);
  std::vector<uint32_t> entries;
  for (uint32_t block = BlockOf(part.offset); block <= BlockOf(part.end() - 1); ++block) {
    entries.push_back(*LoadAt<le32>(slice.bytes(), block % kSliceEntries * 4));
  }
  return entries;
}

uint64_t VdiLayer::WriteEntries(TableCache::Ref& slice, std::span<const Update> updates) {
  std::lock_guard lock(map_mutex_);
  for (const Update& update : updates) {
    StoreAt(slice.Edit({update.block % kSliceEntries * uint64_t{4}, 4}), 0, le32(update.entry));
  }
  return generation_;
}

}  // namespace platter::vdi
