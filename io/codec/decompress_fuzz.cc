// Hostile packed units. The first byte chooses codec and unit, the rest is the stream. What the
// codec reads must be inside the stream, and what it says it used too.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "io/codec/codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  if (size == 0) return 0;
  constexpr Codec::Id kIds[] = {Codec::kDeflate, Codec::kZstd, Codec::kZlib, Codec::kZlib};
  Codec::Id id = kIds[(data[0] & 1) | (data[0] >> 3 & 2)];
  std::vector<std::byte> unit(size_t{512} << (data[0] >> 1) % 8);
  // A heap copy of its own: a read behind the stream is a read behind an allocation.
  std::vector<std::byte> stream(size - 1);
  std::ranges::copy(std::as_bytes(std::span(data + 1, size - 1)), stream.begin());
  auto used = Decompress(id, stream, unit);
  CHECK(used ? *used <= stream.size() : used.error().code() == Code::kCorrupt);
  return 0;
}
