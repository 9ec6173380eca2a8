#include "io/codec/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace platter {

uint32_t Crc32c(ConstBytes bytes, uint32_t so_far) {
  constexpr size_t kMost = size_t{1} << 30;  // the library counts in int
  uint32_t state = ~so_far;
  while (!bytes.empty()) {
    ConstBytes piece = bytes.first(std::min(bytes.size(), kMost));
    // Reads only, whatever its signature says.
    auto* data = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(piece.data()));
    state = crc32_iscsi(data, static_cast<int>(piece.size()), state);
    bytes = bytes.subspan(piece.size());
  }
  return ~state;
}

}  // namespace platter
