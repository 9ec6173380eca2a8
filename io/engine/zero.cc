// Zero and Discard: the layer drops what it can drop as whole units, the engine writes zeros to
// the rest of a Zero.
#include <algorithm>
#include <array>

#include "base/check.h"
#include "io/engine/engine.h"
#include "io/engine/extent_io.h"

namespace platter {
namespace {

constexpr size_t kZeroBlock = 64 * kKiB;
alignas(4096) const std::byte kZeros[kZeroBlock]{};

// Writes zeros, but not where zeros are read already: a ragged end of a TRIM in an empty image must
// not allocate a cluster. (Bytes that another request writes between our Map and our return were
// written at the same time as our zeros: either order is right.)
Result<> WriteZeros(Layer& layer, Range range) {
  std::vector<iovec> from;
  for (uint64_t at = range.offset; at < range.end();) {
    Extent extent;
    {
      Pin pin = layer.Hold();
      TRY(layer.Map(Range::FromTo(at, range.end()), std::span(&extent, 1)));
    }
    uint64_t length = extent.guest.length;
    if (extent.kind == Kind::kZero || extent.kind == Kind::kHole) {
      at += length;
      continue;
    }
    length = std::min<uint64_t>(length, 16 * kZeroBlock);
    from.clear();
    for (uint64_t left = length; left > 0; left -= from.back().iov_len) {
      from.push_back({const_cast<std::byte*>(kZeros), std::min<uint64_t>(left, kZeroBlock)});
    }
    TRY(Write(layer, at, from));
    at += length;
  }
  return {};
}

Result<> CheckInside(Layer& layer, Range range) {
  if (FitsIn(range.offset, range.length, layer.info().size)) return {};
  return Fail(Code::kOutOfRange, "{}: {:#x}+{:#x} is not inside the disk of {:#x} bytes",
              layer.info().format, range.offset, range.length, layer.info().size);
}

// Drops what the layer can drop of `range`; the rest is zeroed by writing, or left.
Result<> Drop(Layer& layer, Range range, Kind leave, bool zero_rest) {
  TRY(CheckInside(layer, range));
  while (!range.empty()) {
    Range dropped = TRY(layer.Discard(range, leave));
    CHECK(dropped.empty() || (dropped.offset >= range.offset && dropped.end() <= range.end()));
    // Nothing dropped: nothing more will be.
    Range kept = Range::FromTo(range.offset, dropped.empty() ? range.end() : dropped.offset);
    if (zero_rest && !kept.empty()) TRY(WriteZeros(layer, kept));
    range = Range::FromTo(dropped.empty() ? range.end() : dropped.end(), range.end());
  }
  return {};
}

}  // namespace

Result<> Zero(Layer& layer, Range range, bool may_unmap) {
  return Drop(layer, range, may_unmap ? Kind::kHole : Kind::kZero, /*zero_rest=*/true);
}

Result<> Discard(Layer& layer, Range range) {
  return Drop(layer, range, Kind::kHole, /*zero_rest=*/false);
}

}  // namespace platter
