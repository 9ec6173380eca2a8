// Helpers on scatter lists: spans of iovec whose total length is the length of a request.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"

namespace platter {

uint64_t IovLength(std::span<const iovec> iov);

// The part of `iov` that starts `skip` bytes in and is `length` bytes long, appended to `out`.
void IovSlice(std::span<const iovec> iov, uint64_t skip, uint64_t length, std::vector<iovec>& out);

// Copies between a scatter list and a span; the span decides the length, which must fit.
void IovScatter(ConstBytes from, std::span<const iovec> iov, uint64_t skip);
void IovGather(std::span<const iovec> iov, uint64_t skip, Bytes into);
void IovFillZero(std::span<const iovec> iov, uint64_t skip, uint64_t length);

}  // namespace platter
