#include "formats/preallocate.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/math.h"
#include "io/buffer.h"

namespace platter {

Result<> PreallocateBytes(Store& store, Range range, Preallocation preallocation) {
  if (range.empty() || preallocation == Preallocation::kOff ||
      preallocation == Preallocation::kMetadata) {
    return {};
  }
  if (preallocation == Preallocation::kFalloc) return store.Allocate(range);
  Buffer zeros(kMiB);
  std::ranges::fill(zeros.bytes(), std::byte{0});
  while (!range.empty()) {
    const uint64_t length = std::min<uint64_t>(range.length, zeros.size());
    TRY(store.Write(range.offset, zeros.bytes().first(length)));
    range = Range::FromTo(range.offset + length, range.end());
  }
  return {};
}

}  // namespace platter
