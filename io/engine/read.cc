// Reading: Hold, Map, move, drop the Pin.
//
// The Pin is taken before Map and lives until the last host byte is read: between the two, a
// cluster that was mapped may be dropped by a Discard or replaced by a Publish, and must not be
// given to other guest bytes meanwhile. A read sees each byte as it was at some moment between its
// start and its end; it promises nothing about the order in which it sees the bytes of a write that
// runs at the same time, as disks do not either.
//
// Units read in part are kept for the next reader where the layer has a place for them: see
// io/unit_cache.h. Who reads many asks for whole ones, which are unpacked where they are wanted
// (Copy does).
#include <array>

#include "base/check.h"
#include "io/engine/engine.h"
#include "io/engine/extent_io.h"
#include "io/iov.h"
#include "io/store.h"

namespace platter {
namespace {

Result<> ReadBatches(Layer& layer, const Pin& pin, Range want, std::span<const iovec> into) {
  ExtentReader reader(layer.unit_cache(), pin);
  std::array<Extent, kMapBatch> extents;
  for (uint64_t at = want.offset; at < want.end();) {
    size_t count = TRY(layer.Map(Range::FromTo(at, want.end()), extents));
    CHECK(count > 0);
    uint64_t end = extents[count - 1].guest.end();
    TRY(reader.Read(std::span(extents).first(count), into, at - want.offset, end < want.end()));
    at = end;
  }
  return {};
}

}  // namespace

Result<> Read(Layer& layer, uint64_t at, std::span<const iovec> into) {
  uint64_t length = IovLength(into);
  if (length == 0) return {};
  Pin pin = layer.Hold();
  // Most reads are small and lie in one extent: no array, no allocation. TryMap first: it may
  // answer "data" where Map would ask the file system for holes, which costs more than reading
  // them.
  Extent first;
  if (layer.TryMap({at, length}, std::span(&first, 1)) == 0) {
    TRY(layer.Map({at, length}, std::span(&first, 1)));
  }
  if (first.guest.length == length) {
    if (IsPlain(first)) return first.store->Read(first.host.offset, into);
    if (ReadsAsZero(first)) {
      IovFillZero(into, 0, length);
      return {};
    }
  }
  return ReadBatches(layer, pin, {at, length}, into);
}

Result<> Read(Layer& layer, uint64_t at, Bytes into) {
  iovec one{into.data(), into.size()};
  return Read(layer, at, std::span<const iovec>(&one, 1));
}

size_t TryRead(Layer& layer, uint64_t at, std::span<const iovec> into) {
  uint64_t length = IovLength(into);
  if (length == 0) return 0;
  Pin pin = layer.Hold();
  std::array<Extent, 8> extents;
  size_t count = layer.TryMap({at, length}, extents);
  std::vector<iovec> slice;
  size_t done = 0;
  for (const Extent& extent : std::span(extents).first(count)) {
    size_t part = extent.guest.length;
    if (ReadsAsZero(extent)) {
      IovFillZero(into, done, part);
    } else if (!IsPlain(extent)) {
      break;
    } else if (part == length) {
      return extent.store->TryRead(extent.host.offset, into);
    } else {
      slice.clear();
      IovSlice(into, done, part, slice);
      size_t served = extent.store->TryRead(extent.host.offset, slice);
      if (served < part) return done + served;
    }
    done += part;
  }
  return done;
}

}  // namespace platter
