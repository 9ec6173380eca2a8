#include "nbd/file_bytes.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/math.h"
#include "io/page_cache.h"
#include "io/store.h"

namespace platter::nbd {
namespace {

constexpr size_t kMost = 16;  // extents

std::optional<FileBytes> TryFind(const Extent& extent) {
  if (extent.kind != Kind::kData || extent.codec != Codec{}) return std::nullopt;
  Store& store = *extent.store;
  const int fd = store.fd();
  if (fd < 0 || store.writable()) return std::nullopt;
  // Once the reply has begun, it is too late to say that an image names bytes that are not there.
  auto size = store.Size();
  if (!size || !FitsIn(extent.host.offset, extent.host.length, *size)) return std::nullopt;
  const Range bytes{store.fd_offset() + extent.host.offset, extent.host.length};
  if (!ReadsWithoutWaiting(fd, bytes)) return std::nullopt;
  return FileBytes{fd, bytes.offset, bytes.length};
}

}  // namespace

size_t TryFindFileBytes(Layer& layer, Range range, std::span<FileBytes> out) {
  std::array<Extent, kMost> extents;
  Pin pin = layer.Hold();
  const size_t count = layer.TryMap(range, std::span(extents).first(std::min(kMost, out.size())));
  uint64_t found = 0;
  for (size_t i = 0; i < count; ++i) {
    auto bytes = TryFind(extents[i]);
    if (!bytes) return 0;
    found += bytes->length;
    out[i] = *bytes;
  }
  return found == range.length ? count : 0;
}

}  // namespace platter::nbd
