// Batches of scattered reads and writes, submitted together through io_uring inside one call.
//
// A thread makes its ring on first use and keeps it. Where there is none (an old kernel, seccomp,
// no memory), where a store has no file descriptor, and for a single request, the requests go to
// the stores one after the other. A request that the ring fails or serves in part goes to its store
// again as a whole, which either finishes it or tells the error: results and messages are those of
// Store::Read and Store::Write, whatever the way.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>

#include "base/result.h"
#include "io/store.h"

namespace platter {

struct StoreRequest {
  Store* store = nullptr;
  uint64_t at = 0;  // bytes, in the store
  std::span<const iovec> iov;
};

// All requests, in any order, each as a whole; on return nothing is under way any more. On error
// (that of the first one in the list that failed) any of the others may have been done.
Result<> RingRead(std::span<const StoreRequest> requests);
Result<> RingWrite(std::span<const StoreRequest> requests);

// True if this thread has, or can make, a ring.
bool RingAvailable();

}  // namespace platter
