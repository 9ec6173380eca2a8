#include "tools/map_entries.h"

#include <array>

#include "base/size.h"

namespace platter {
namespace {

MapEntry ToEntry(const Extent& extent) {
  MapEntry entry;
  entry.range = extent.guest;
  entry.depth = extent.depth;
  entry.data = extent.kind == Kind::kData;
  entry.zero = !entry.data;
  entry.present = extent.kind != Kind::kHole || extent.store != nullptr;
  entry.compressed = extent.packed();
  if (extent.store) entry.file = extent.store->name();
  if (extent.store && !extent.packed() && !extent.codec.cipher) entry.host = extent.host.offset;
  return entry;
}

}  // namespace

bool MapEntry::ContinuedBy(const MapEntry& next) const {
  return depth == next.depth && present == next.present && zero == next.zero && data == next.data &&
         compressed == next.compressed && file == next.file &&
         host.has_value() == next.host.has_value() && (!host || *host + range.length == *next.host);
}

Result<> ForEachMapEntry(Disk& disk, Range range,
                         const std::function<void(const MapEntry&)>& visit) {
  std::array<Extent, 256> extents;
  std::optional<MapEntry> pending;
  for (uint64_t at = range.offset; at < range.end();) {
    Pin pin = disk.Hold();
    size_t count = TRY(disk.Map(Range::FromTo(at, range.end()), extents));
    for (size_t i = 0; i < count; ++i) {
      MapEntry entry = ToEntry(extents[i]);
      at = entry.range.end();
      if (pending && pending->ContinuedBy(entry)) {
        pending->range.length += entry.range.length;
        continue;
      }
      if (pending) visit(*pending);
      pending = std::move(entry);
    }
  }
  if (pending) visit(*pending);
  return {};
}

Result<Range> ParseMapRange(const std::string& start, const std::string& length, uint64_t size) {
  uint64_t first = start.empty() ? 0 : TRY(ParseSize(start));
  if (first > size)
    return Fail(Code::kOutOfRange, "--start-offset {} is past the end of the disk ({} bytes)",
                first, size);
  uint64_t most = length.empty() ? size - first : TRY(ParseSize(length));
  return Range{first, std::min(most, size - first)};
}

}  // namespace platter
