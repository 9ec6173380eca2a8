#include "io/iov.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace platter {
namespace {

// Calls part(pointer, bytes) for each contiguous piece of [skip, skip + length) of `iov`.
template <class Part>
void ForEachPart(std::span<const iovec> iov, uint64_t skip, uint64_t length, Part part) {
  for (const iovec& one : iov) {
    if (length == 0) return;
    if (skip >= one.iov_len) {
      skip -= one.iov_len;
      continue;
    }
    size_t count = std::min<uint64_t>(one.iov_len - skip, length);
    part(static_cast<std::byte*>(one.iov_base) + skip, count);
    skip = 0;
    length -= count;
  }
  CHECK(length == 0);  // the part lies inside the list
}

}  // namespace

uint64_t IovLength(std::span<const iovec> iov) {
  uint64_t length = 0;
  for (const iovec& one : iov) length += one.iov_len;
  return length;
}

void IovSlice(std::span<const iovec> iov, uint64_t skip, uint64_t length, std::vector<iovec>& out) {
  ForEachPart(iov, skip, length,
              [&](std::byte* data, size_t count) { out.push_back(iovec{data, count}); });
}

void IovScatter(ConstBytes from, std::span<const iovec> iov, uint64_t skip) {
  const std::byte* next = from.data();
  ForEachPart(iov, skip, from.size(), [&](std::byte* data, size_t count) {
    std::memcpy(data, next, count);
    next += count;
  });
}

void IovGather(std::span<const iovec> iov, uint64_t skip, Bytes into) {
  std::byte* next = into.data();
  ForEachPart(iov, skip, into.size(), [&](std::byte* data, size_t count) {
    std::memcpy(next, data, count);
    next += count;
  });
}

void IovFillZero(std::span<const iovec> iov, uint64_t skip, uint64_t length) {
  ForEachPart(iov, skip, length,
              [](std::byte* data, size_t count) { std::memset(data, 0, count); });
}

}  // namespace platter
