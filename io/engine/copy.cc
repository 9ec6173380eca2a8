// Copying: the source is mapped once, in guest order, and cut into jobs of about a megabyte of
// data; workers take jobs as they become free.
//
// A worker reads its job into a buffer that fits a core's L2 cache, unpacks or packs what is to be
// unpacked or packed, finds the zeros, and then waits for its turn to reserve space in the target.
// Turns are in guest order, whatever the number of workers and whoever is faster: the allocator of
// the target sees the same requests in the same order each time, and so the same input makes the
// same file. The turn covers the reservations only; the writes that follow run side by side.
//
// During its turn a worker may come to hold several reservations, all of one job and ascending.
// That is safe as long as who holds some only ever asks for higher ones: see RangeLock.
//
// Targets that allocate nothing (no unit: raw) have no turns.
#include <algorithm>
#include <thread>

#include "io/engine/copy_worker.h"
#include "io/engine/engine.h"

namespace platter {

void CopyShared::Unreadable(Range range, const Error& error) {
  std::lock_guard lock(report_mutex);
  if (options.unreadable) options.unreadable(range, error);
}

void CopyShared::Stop(uint64_t number, Error error) {
  {
    std::lock_guard lock(report_mutex);
    if (!failure || number < failed_number) {
      failed_number = number;
      failure = std::move(error);
    }
  }
  stop = true;
  turnstile.Close();
}

unsigned WorkerCount(const CopyOptions& options, uint64_t length) {
  unsigned wanted = options.threads != 0 ? options.threads : std::thread::hardware_concurrency();
  uint64_t jobs = DivideUp(length, kMiB);
  return static_cast<unsigned>(std::clamp<uint64_t>(jobs, 1, std::max(wanted, 1u)));
}

namespace {

// Bytes: what the workers of one copy take together, however many processors there are. With what
// else there is, a conversion stays below 256 MiB.
constexpr uint64_t kMostMemory = 192 * kMiB;

unsigned MostWorkers(const CopyShared& shared) {
  // Guest bytes, packed units of the source (up to twice as much) and of the target.
  uint64_t each = kMiB + 4 * uint64_t{shared.plan.chunk()};
  const Info& to = shared.to.info();
  if (shared.options.compress || to.only_packed) {
    each += CompressorMemory({.id = PackedCodec(to), .level = shared.options.level}, to.unit);
  }
  return static_cast<unsigned>(std::max<uint64_t>(kMostMemory / each, 1));
}

}  // namespace

Result<> Copy(Layer& from, Layer& to, Range range, const CopyOptions& options) {
  if (!FitsIn(range.offset, range.length, to.info().size)) {
    return Fail(Code::kOutOfRange, "the target has {} bytes, too few for {} bytes at {}",
                to.info().size, range.length, range.offset);
  }
  if (options.compress && PackedCodec(to.info()) == Codec::kNone) {
    return Fail(Code::kUnsupported, "{}: compressed units cannot be written", to.info().format);
  }
  if (options.progress && options.progress->total == 0) options.progress->total = range.length;
  CopyShared shared(from, to, range, options);
  {
    std::vector<std::jthread> others;
    const unsigned count = std::min(WorkerCount(options, range.length), MostWorkers(shared));
    for (unsigned i = 1; i < count; ++i) {
      others.emplace_back([&shared] { CopyWorker(shared).Run(); });
    }
    CopyWorker(shared).Run();
  }
  if (shared.failure) return std::unexpected(std::move(*shared.failure));
  return {};
}

}  // namespace platter
