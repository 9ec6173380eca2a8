// Construction, reading and the end. The essay is in vmdk_layer.h.
#include "formats/vmdk/vmdk_layer.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"

namespace platter::vmdk {

VmdkLayer::VmdkLayer(Parts parts)
    : p_(std::move(parts)), name_(fmt::format("vmdk '{}'", p_.file->name())) {}

VmdkLayer::~VmdkLayer() {
  if (!writing_ || !Flush().has_value()) return;
  for (DiskExtent& extent : p_.extents) {
    if (extent.sparse) (void)extent.sparse->Trim();
  }
}

Result<> VmdkLayer::CheckInside(Range want) const {
  if (p_.info_only) return Fail(Code::kRefused, "opened for information only");
  if (!want.empty() && FitsIn(want.offset, want.length, p_.info.size)) return {};
  return Fail(Code::kOutOfRange, "{:#x}+{:#x} is not inside the disk of {:#x} bytes", want.offset,
              want.length, p_.info.size);
}

DiskExtent& VmdkLayer::ExtentAt(uint64_t guest) {
  auto after = std::ranges::upper_bound(p_.extents, guest, {},
                                        [](const DiskExtent& e) { return e.guest.offset; });
  return *std::prev(after);
}

Result<size_t> VmdkLayer::Map(Range want, std::span<Extent> out) {
  CHECK(!out.empty());
  return Named(MapAll(want, out, /*may_read=*/true));
}

size_t VmdkLayer::TryMap(Range want, std::span<Extent> out) {
  if (out.empty()) return 0;
  return MapAll(want, out, /*may_read=*/false).value_or(0);
}

Result<size_t> VmdkLayer::MapAll(Range want, std::span<Extent> out, bool may_read) {
  TRY(CheckInside(want));
  ExtentList list(out);
  for (uint64_t at = want.offset; at < want.end();) {
    DiskExtent& extent = ExtentAt(at);
    Range part = Range::FromTo(at, std::min(want.end(), extent.guest.end()));
    auto done = MapOne(extent, part, list, may_read);
    if (!done.has_value()) {
      if (list.size() > 0) break;
      return std::unexpected(std::move(done.error()));
    }
    if (*done == 0) break;
    at += *done;
  }
  return list.size();
}

// How many bytes of `part` there was room for.
Result<uint64_t> VmdkLayer::MapOne(DiskExtent& extent, Range part, ExtentList& list,
                                   bool may_read) {
  if (extent.line.access == ExtentLine::kNoAccess) {
    return Fail(Code::kRefused, "the extent at guest offset {:#x} ({} bytes) is NOACCESS",
                extent.guest.offset, extent.guest.length);
  }
  if (extent.sparse) {
    part.offset -= extent.guest.offset;
    return extent.sparse->Map(part, extent.guest.offset, list, may_read);
  }
  if (extent.store) return MapFlat(extent, part, list, may_read);
  Extent zeros;
  zeros.guest = part;
  zeros.kind = Kind::kZero;
  return list.Add(zeros) ? part.length : 0;
}

// Holes of the file are told as such, where looking for them is allowed.
Result<uint64_t> VmdkLayer::MapFlat(const DiskExtent& extent, Range part, ExtentList& list,
                                    bool may_read) {
  uint64_t done = 0;
  while (done < part.length) {
    const uint64_t guest = part.offset + done;
    const uint64_t host = extent.offset + (guest - extent.guest.offset);
    if (host >= extent.end) {
      if (done > 0) return done;
      return Fail(Code::kCorrupt, "guest offset {:#x}: extent '{}' ends at {:#x}, before {:#x}",
                  guest, Printable(extent.line.name), extent.end, host);
    }
    Store::Run run{std::min(part.length - done, extent.end - host), true};
    if (may_read) {
      Store::Run found = TRY(extent.store->FindRun(host));
      run = {std::min(found.length, run.length), found.data};
    }
    Extent piece;
    piece.guest = {guest, run.length};
    piece.kind = run.data ? Kind::kData : Kind::kHole;
    if (run.data) {
      piece.store = extent.store;
      piece.host = {host, run.length};
      piece.writable = writing_ && extent.line.access == ExtentLine::kReadWrite;
    }
    if (!list.Add(piece)) return done;
    done += run.length;
  }
  return done;
}

Result<> VmdkLayer::Flush() {
  if (!writing_.load(std::memory_order_acquire)) return {};
  std::vector<Store*> synced;
  for (DiskExtent& extent : p_.extents) {
    if (extent.line.access != ExtentLine::kReadWrite || !extent.store) continue;
    if (extent.sparse) {
      TRY(Named(extent.sparse->Flush()));
    } else if (synced.empty() || synced.back() != extent.store) {
      TRY(Named(extent.store->Sync()));
      synced.push_back(extent.store);
    }
  }
  return {};
}

}  // namespace platter::vmdk
