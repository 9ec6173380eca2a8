// Comparing: both maps are walked side by side, and cut where one of them changes between data and
// zeros. Where neither has data nothing is read; where one has none the other must be all zeros.
//
// Jobs are handed out in guest order, and none is handed out behind the earliest difference found
// so far; all before it are finished. So the one that is told is the first of all, and what cannot
// be read behind it does not matter, whoever is faster.
#include <algorithm>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/sync.h"
#include "io/engine/engine.h"
#include "io/engine/extent_io.h"
#include "io/engine/map_cursor.h"

namespace platter {
namespace {

// Two buffers of this size stay in a core's L2 cache.
constexpr uint64_t kChunk = 256 * kKiB;
constexpr uint64_t kLargestChunk = 2 * kMiB;
constexpr size_t kMostExtents = 256;

// One layer's part of a job.
struct Side {
  std::vector<Extent> extents;
  std::vector<std::shared_ptr<const Pin>> pins;

  void Take(MapCursor& cursor, const Extent& extent, uint64_t length) {
    extents.push_back(ExtentPrefix(extent, length));
    if (cursor.pin() && (pins.empty() || pins.back() != cursor.pin())) pins.push_back(cursor.pin());
    cursor.Advance(length);
  }
};

struct Job {
  struct Run {  // in which each side has data throughout, or nowhere
    Range guest;
    struct Part {
      bool data;
      size_t first, count;  // of the side's extents
    } a, b;
  };
  std::vector<Run> runs;
  Side a, b;
  uint64_t bytes = 0;    // of all runs
  uint64_t covered = 0;  // guest bytes, holes included
};

// What the workers share.
class Comparison {
 public:
  Comparison(Layer& a, Layer& b, const CopyOptions& options)
      : options_(options),
        size_(std::max(a.info().size, b.info().size)),
        a_(a, {0, size_}),
        b_(b, {0, size_}) {
    uint64_t unit = std::max(a.info().unit, b.info().unit);
    chunk_ = std::clamp(unit, kChunk, kLargestChunk);
    cut_ = unit == 0 || unit > chunk_ ? Buffer::kAlign : unit;
  }

  uint64_t chunk() const { return chunk_; }
  uint64_t size() const { return size_; }

  // Nothing at the end, after a failure, and behind the earliest difference.
  std::optional<Job> Next() {
    std::lock_guard lock(mutex_);
    if (stop_ || a_.at() >= first_difference_) return std::nullopt;
    Job job;
    uint64_t begin = a_.at();
    auto filled = FillLocked(job);
    if (!filled) {
      FailLocked(a_.at(), std::move(filled.error()));
      return std::nullopt;
    }
    if (a_.at() == begin) return std::nullopt;
    job.covered = a_.at() - begin;
    return job;
  }

  void Differs(uint64_t at) {
    std::lock_guard lock(mutex_);
    first_difference_ = std::min(first_difference_, at);
  }
  void Fails(uint64_t at, Error error) {
    std::lock_guard lock(mutex_);
    FailLocked(at, std::move(error));
  }
  void Done(const Job& job, uint64_t moved) {
    if (!options_.progress) return;
    options_.progress->done += job.covered;
    options_.progress->moved += moved;
  }

  Result<std::optional<uint64_t>> Outcome() {
    if (failure_ && failed_at_ <= first_difference_) {
      return std::unexpected(std::move(*failure_));
    }
    if (first_difference_ == UINT64_MAX) return std::nullopt;
    return first_difference_;
  }

 private:
  void FailLocked(uint64_t at, Error error) {
    if (!failure_ || at < failed_at_) {
      failed_at_ = at;
      failure_ = std::move(error);
    }
    stop_ = true;
  }

  Result<> FillLocked(Job& job) {
    uint64_t begin = a_.at();
    while (!a_.done() && job.a.extents.size() < kMostExtents) {
      if (options_.progress && options_.progress->cancel) return Fail(Code::kRefused, "cancelled");
      Extent a = TRY(a_.Peek()), b = TRY(b_.Peek());
      uint64_t end = std::min(a.guest.end(), b.guest.end());
      if (ReadsAsZero(a) && ReadsAsZero(b)) {
        a_.Advance(end - a.guest.offset);
        b_.Advance(end - b.guest.offset);
        if (job.runs.empty() && a_.at() - begin >= kTiB) break;  // let progress be seen
        continue;
      }
      uint64_t at = a.guest.offset;
      end = std::min(end, RoundDown(at + chunk_ - job.bytes, cut_));
      if (end <= at) break;
      AddLocked(job, a, b, end - at);
    }
    return {};
  }

  void AddLocked(Job& job, const Extent& a, const Extent& b, uint64_t length) {
    bool a_data = !ReadsAsZero(a), b_data = !ReadsAsZero(b);
    bool same = !job.runs.empty() && job.runs.back().guest.end() == a.guest.offset &&
                job.runs.back().a.data == a_data && job.runs.back().b.data == b_data;
    if (!same) {
      job.runs.push_back({.guest = {a.guest.offset, 0},
                          .a = {a_data, job.a.extents.size(), 0},
                          .b = {b_data, job.b.extents.size(), 0}});
    }
    Job::Run& run = job.runs.back();
    job.a.Take(a_, a, length);
    job.b.Take(b_, b, length);
    ++run.a.count;
    ++run.b.count;
    run.guest.length += length;
    job.bytes += length;
  }

  const CopyOptions& options_;
  const uint64_t size_;
  uint64_t chunk_, cut_;
  Mutex mutex_;  // guards what follows; held while both are mapped, before every lock of a layer
  MapCursor a_, b_;
  uint64_t first_difference_ = UINT64_MAX;
  bool stop_ = false;
  uint64_t failed_at_ = 0;
  std::optional<Error> failure_;  // at failed_at_
};

class Worker {
 public:
  explicit Worker(Comparison& comparison)
      : comparison_(comparison), a_(comparison.chunk()), b_(comparison.chunk()) {}

  void Run() {
    while (auto job = comparison_.Next()) {
      moved_ = 0;
      for (const Job::Run& run : job->runs) {
        auto difference = CompareRun(*job, run);
        if (!difference) {
          return comparison_.Fails(run.guest.offset, std::move(difference.error()));
        }
        if (!*difference) continue;
        comparison_.Differs(**difference);
        break;
      }
      comparison_.Done(*job, moved_);
    }
  }

 private:
  // Where the run's first difference is.
  Result<std::optional<uint64_t>> CompareRun(const Job& job, const Job::Run& run) {
    ConstBytes a, b;
    if (run.a.data) a = TRY(Load(job.a, run.a, run.guest.length, a_));
    if (run.b.data) b = TRY(Load(job.b, run.b, run.guest.length, b_));
    if (a.empty() || b.empty()) {
      ConstBytes data = a.empty() ? b : a;
      if (IsZero(data)) return std::nullopt;
      auto first = std::ranges::find_if(data, [](std::byte x) { return x != std::byte{0}; });
      return run.guest.offset + (first - data.begin());
    }
    if (std::memcmp(a.data(), b.data(), a.size()) == 0) return std::nullopt;
    return run.guest.offset + (std::ranges::mismatch(a, b).in1 - a.begin());
  }

  Result<ConstBytes> Load(const Side& side, const Job::Run::Part& part, uint64_t length,
                          Buffer& buffer) {
    iovec into{buffer.data(), length};
    reader_.Forget();
    TRY(reader_.Read(std::span(side.extents).subspan(part.first, part.count),
                     std::span<const iovec>(&into, 1), 0));
    moved_ += length;
    return buffer.bytes().first(length);
  }

  Comparison& comparison_;
  Buffer a_, b_;
  ExtentReader reader_;
  uint64_t moved_ = 0;
};

}  // namespace

Result<std::optional<uint64_t>> Compare(Layer& a, Layer& b, const CopyOptions& options) {
  Comparison comparison(a, b, options);
  if (options.progress) options.progress->total = comparison.size();
  {
    std::vector<std::jthread> others;
    for (unsigned i = 1; i < WorkerCount(options, comparison.size()); ++i) {
      others.emplace_back([&comparison] { Worker(comparison).Run(); });
    }
    Worker(comparison).Run();
  }
  return comparison.Outcome();
}

}  // namespace platter
