#include "io/ring.h"

#include <liburing.h>
#include <limits.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <vector>

#include "base/math.h"
#include "base/sync.h"
#include "io/iov.h"

namespace platter {
namespace {

constexpr unsigned kDepth = 64;  // requests under way at once

// A child process finds its parent's rings in its memory, but must not use them.
std::atomic<unsigned> generation{0};

void WatchForks() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { ++generation; }); });
}

class Ring {
 public:
  ~Ring() { Drop(); }

  bool Ready() {
    if (made_ && made_in_ != generation) Drop();
    if (!made_ && !refused_) Make();
    return made_;
  }

  // Does requests[i] for each i of `chosen`. results[i] becomes what preadv or pwritev would have
  // returned (an error as -errno), and stays as it is where the kernel did not take the request.
  // Nothing is under way on return: the kernel writes into memory that the caller will reuse.
  void Run(bool write, std::span<const StoreRequest> requests, std::span<const size_t> chosen,
           std::span<int> results) {
    size_t next = 0;         // of `chosen`, not yet prepared
    unsigned prepared = 0;   // not yet taken by the kernel
    unsigned under_way = 0;  // taken, not yet completed
    while (next < chosen.size() || prepared + under_way > 0) {
      for (; next < chosen.size() && prepared + under_way < kDepth; ++next, ++prepared) {
        Prepare(write, requests[chosen[next]], chosen[next]);
      }
      int taken = io_uring_submit_and_wait(&ring_, 1);
      if (taken > 0) {
        prepared -= static_cast<unsigned>(taken);
        under_way += static_cast<unsigned>(taken);
      }
      under_way -= Reap(results);
      bool try_again = taken >= 0 || taken == -EINTR || (taken == -EAGAIN && under_way > 0);
      if (!try_again) return GiveUp(under_way, results);
    }
  }

 private:
  void Make() {
    WatchForks();
    int result = io_uring_queue_init(kDepth, &ring_, IORING_SETUP_COOP_TASKRUN);
    if (result == -EINVAL) result = io_uring_queue_init(kDepth, &ring_, 0);  // before Linux 5.19
    made_ = result == 0;
    refused_ = !made_;
    made_in_ = generation;
  }

  void Drop() {
    if (made_) io_uring_queue_exit(&ring_);
    made_ = false;
  }

  // There is room: never more than kDepth entries are out.
  void Prepare(bool write, const StoreRequest& request, size_t index) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    const int fd = request.store->fd();
    const uint64_t at = request.store->fd_offset() + request.at;
    const auto count = static_cast<unsigned>(request.iov.size());
    if (write) {
      io_uring_prep_writev(entry, fd, request.iov.data(), count, at);
    } else {
      io_uring_prep_readv(entry, fd, request.iov.data(), count, at);
    }
    io_uring_sqe_set_data64(entry, index);
  }

  unsigned Reap(std::span<int> results) {
    unsigned count = 0;
    for (io_uring_cqe* done = nullptr; io_uring_peek_cqe(&ring_, &done) == 0; ++count) {
      results[io_uring_cqe_get_data64(done)] = done->res;
      io_uring_cqe_seen(&ring_, done);
    }
    return count;
  }

  // The ring does not work any more. What it has taken must come back first.
  void GiveUp(unsigned under_way, std::span<int> results) {
    while (under_way > 0) {
      io_uring_cqe* done = nullptr;
      io_uring_wait_cqe(&ring_, &done);  // submits nothing; may return early for a signal
      under_way -= Reap(results);
    }
    Drop();
    refused_ = true;
  }

  io_uring ring_;
  bool made_ = false, refused_ = false;
  unsigned made_in_ = 0;
};

thread_local Ring ring;

// What goes through the ring: inside the store as it is now (a window's descriptor shows bytes past
// the window, too), and of a size that the kernel takes as one request.
std::vector<size_t> Choose(bool write, std::span<const StoreRequest> requests) {
  std::vector<size_t> chosen;
  const Store* last = nullptr;
  uint64_t size = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const StoreRequest& request = requests[i];
    if (request.store->fd() < 0 || (write && !request.store->writable())) continue;
    if (request.store != last) {
      Result<uint64_t> now = request.store->Size();
      last = request.store;
      size = now.has_value() ? *now : 0;
    }
    const uint64_t length = IovLength(request.iov);
    if (length > 0 && length <= INT_MAX && request.iov.size() <= IOV_MAX &&
        FitsIn(request.at, length, size)) {
      chosen.push_back(i);
    }
  }
  return chosen;
}

Result<> RunBatch(bool write, std::span<const StoreRequest> requests) {
  std::vector<int> results(requests.size(), -EAGAIN);
  if (requests.size() > 1) {
    std::vector<size_t> chosen = Choose(write, requests);
    sched::Yield(write ? "store write" : "store read");
    if (chosen.size() > 1 && ring.Ready()) ring.Run(write, requests, chosen, results);
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const StoreRequest& request = requests[i];
    if (results[i] >= 0 && static_cast<uint64_t>(results[i]) == IovLength(request.iov)) continue;
    if (write) {
      TRY(request.store->Write(request.at, request.iov));
    } else {
      TRY(request.store->Read(request.at, request.iov));
    }
  }
  return {};
}

}  // namespace

Result<> RingRead(std::span<const StoreRequest> requests) { return RunBatch(false, requests); }

Result<> RingWrite(std::span<const StoreRequest> requests) { return RunBatch(true, requests); }

bool RingAvailable() { return ring.Ready(); }

}  // namespace platter
