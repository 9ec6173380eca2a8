// The disk is walked once, in guest order, under a lock; what the top layer holds itself is passed
// over, and so is what reads as zeros on both sides, or comes from the same bytes of the same file
// (the parents that both chains have in common). The rest is handed out in windows, which workers
// read on both sides and compare unit by unit.
//
// A window that a worker writes to may share a unit of the top layer with the next one. Then the
// unit is copied up whole with the first write, from the parents as they are, which nobody changes:
// the second worker finds the same bytes and writes them a second time at worst.
#include "cow/copy_up.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/check.h"
#include "io/buffer.h"

namespace platter {

namespace {

constexpr uint64_t kWindow = kMiB;          // bytes, which a worker looks at at once
constexpr uint64_t kLeastPiece = 4 * kKiB;  // that is compared and copied
constexpr uint64_t kMostPiece = 64 * kKiB;

bool IsZeroes(const Extent& extent) { return extent.kind != Kind::kData; }

class Plan {
 public:
  Plan(Disk& disk, Disk* instead, Progress* progress)
      : disk_(disk), instead_(instead), progress_(progress), size_(disk.info().size) {
    same_.assign(disk.depth(), SIZE_MAX);
    for (size_t i = 1; i < disk.depth(); ++i) {
      for (size_t j = 0; instead && j < instead->depth(); ++j) {
        if (!disk.path(i).empty() && disk.path(i) == instead->path(j)) same_[i] = j;
      }
    }
    if (progress) progress->total = size_;
  }

  // The next window in which the sides may differ; nothing at the end or after a failure.
  std::optional<Range> Next() {
    std::lock_guard lock(mutex_);
    while (at_ < size_ && !failure_) {
      auto window = NextLocked();
      if (!window) {
        failure_ = std::move(window.error());
        break;
      }
      if (progress_) progress_->done = at_;
      if (!window->empty()) return *window;
    }
    return std::nullopt;
  }

  void Fail(Error error) {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(error);
  }
  Result<> Outcome() {
    if (failure_) return std::unexpected(std::move(*failure_));
    return {};
  }

 private:
  // Moves at_ on; an empty window where there is nothing to compare.
  Result<Range> NextLocked() {
    if (progress_ && progress_->cancel) return platter::Fail(Code::kRefused, "cancelled");
    const Pin pin = disk_.Hold();
    Extent own;
    TRY(disk_.layer(0).Map(Range::FromTo(at_, size_), std::span(&own, 1)));
    // In an image without a parent a hole is what the new parent would show through.
    if (own.kind != Kind::kParent && own.kind != Kind::kHole) return Pass(own.guest.length);
    Range range = own.guest;
    const uint64_t alike = TRY(AlikeLocked(range));
    if (alike > 0) return Pass(alike);
    range.length = std::min(range.end(), RoundDown(at_, kWindow) + kWindow) - at_;
    at_ = range.end();
    return range;
  }

  Range Pass(uint64_t length) {
    at_ += length;
    return {at_, 0};
  }

  // How many bytes at the beginning of `range` need not be read to be known as the same.
  Result<uint64_t> AlikeLocked(Range range) {
    Extent old, now{.guest = range, .kind = Kind::kHole};
    TRY(disk_.Map(range, std::span(&old, 1)));
    if (instead_) {
      const uint64_t end = std::min(range.end(), instead_->info().size);
      if (range.offset < end) {
        TRY(instead_->Map(Range::FromTo(range.offset, end), std::span(&now, 1)));
      }
    }
    const bool alike = (IsZeroes(old) && IsZeroes(now)) || SameBytes(old, now);
    return alike ? std::min(old.guest.length, now.guest.length) : 0;
  }

  bool SameBytes(const Extent& old, const Extent& now) const {
    return old.kind == Kind::kData && now.kind == Kind::kData && same_[old.depth] == now.depth &&
           old.host.offset == now.host.offset && !old.codec.cipher && !now.codec.cipher &&
           old.codec == now.codec && old.store->name() == now.store->name();
  }

  Disk& disk_;
  Disk* const instead_;
  Progress* const progress_;
  const uint64_t size_;
  // For each layer of the disk the one of `instead_` that is the same file; SIZE_MAX: none.
  std::vector<size_t> same_;
  Mutex mutex_;  // guards what follows; before every lock of a layer
  uint64_t at_ = 0;
  std::optional<Error> failure_;
};

class Worker {
 public:
  Worker(Disk& disk, Disk* instead, Plan& plan, Progress* progress)
      : disk_(disk),
        instead_(instead),
        plan_(plan),
        progress_(progress),
        piece_(std::clamp<uint64_t>(disk.info().unit, kLeastPiece, kMostPiece)),
        old_(kWindow),
        now_(kWindow) {}

  void Run() {
    while (auto window = plan_.Next()) {
      Result<> done = CopyWindow(*window);
      if (!done) return plan_.Fail(std::move(done.error()));
    }
  }

 private:
  Result<> CopyWindow(Range window) {
    Bytes old = old_.bytes().first(window.length), now = now_.bytes().first(window.length);
    TRY(Read(disk_, window.offset, old));
    TRY(ReadInstead(window, now));
    if (progress_) progress_->moved += window.length;
    Range run{window.offset, 0};  // of pieces that differ
    for (uint64_t at = window.offset; at < window.end();) {
      const uint64_t end = std::min(RoundDown(at, piece_) + piece_, window.end());
      const size_t first = at - window.offset, length = end - at;
      if (std::memcmp(&old[first], &now[first], length) == 0) {
        TRY(CopyRun(run, window, old));
        run = {end, 0};
      } else {
        run.length += length;
      }
      at = end;
    }
    return CopyRun(run, window, old);
  }

  Result<> ReadInstead(Range window, Bytes into) {
    const uint64_t size = instead_ ? instead_->info().size : 0;
    const uint64_t there = std::min(window.end(), std::max(size, window.offset)) - window.offset;
    if (there > 0) TRY(Read(*instead_, window.offset, into.first(there)));
    std::ranges::fill(into.subspan(there), std::byte{0});
    return {};
  }

  Result<> CopyRun(Range run, Range window, ConstBytes old) {
    if (run.empty()) return {};
    ConstBytes bytes = old.subspan(run.offset - window.offset, run.length);
    return IsZero(bytes) ? KeepZeros(run, bytes) : Write(disk_, run.offset, bytes);
  }

  // The top layer itself has to say that these are zeros. One without a parent has no way to say it
  // that would be one with a parent, but zeros.
  Result<> KeepZeros(Range run, ConstBytes zeros) {
    while (!run.empty()) {
      Range said{run.offset, 0};
      if (disk_.depth() > 1) said = TRY(disk_.Discard(run, Kind::kZero));
      const uint64_t end = said.empty() ? run.end() : said.offset;
      if (end > run.offset) TRY(Write(disk_, run.offset, zeros.first(end - run.offset)));
      run = Range::FromTo(said.empty() ? run.end() : said.end(), run.end());
    }
    return {};
  }

  Disk& disk_;
  Disk* const instead_;
  Plan& plan_;
  Progress* const progress_;
  const uint64_t piece_;
  Buffer old_, now_;
};

}  // namespace

Result<> CopyUp(Disk& disk, Disk* instead, unsigned threads, Progress* progress) {
  Plan plan(disk, instead, progress);
  unsigned count = threads != 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
  {
    std::vector<std::jthread> others;
    for (unsigned i = 1; i < count; ++i) {
      others.emplace_back([&] { Worker(disk, instead, plan, progress).Run(); });
    }
    Worker(disk, instead, plan, progress).Run();
  }
  return plan.Outcome();
}

}  // namespace platter
