#include "tools/scan.h"

#include <algorithm>
#include <array>
#include <optional>
#include <thread>
#include <vector>

#include "base/sync.h"

namespace platter {
namespace {

class Scanner {
 public:
  Scanner(Layer& layer, const ScanOptions& options, const ScanWork& work)
      : layer_(layer), options_(options), work_(work), size_(layer.info().size) {
    if (options_.progress) options_.progress->total += size_;
  }

  Result<> Run() {
    unsigned threads =
        options_.threads ? options_.threads : std::max(1u, std::thread::hardware_concurrency());
    {
      std::vector<std::jthread> helpers;
      for (unsigned i = 1; i < threads; ++i) helpers.emplace_back([this] { Loop(); });
      Loop();
    }
    if (error_) return std::unexpected(std::move(*error_));
    return {};
  }

 private:
  struct Ticket {
    uint64_t number;
    ScanChunk chunk;
  };

  void Loop() {
    while (true) {
      Result<std::optional<Ticket>> ticket = Next();
      if (!ticket) return Stop(std::move(ticket.error()));
      if (!*ticket) return;
      Result<ScanFinish> finish = work_((*ticket)->chunk);
      if (!finish) return Stop(std::move(finish.error()));
      Result<> finished = InTurn(**ticket, *finish);
      if (!finished) return Stop(std::move(finished.error()));
    }
  }

  // The next chunk of the disk: mapping is cheap and serial, reading is not and
  // parallel.
  Result<std::optional<Ticket>> Next() {
    std::lock_guard lock(mutex_);
    if (options_.progress && options_.progress->cancel) return Fail(Code::kRefused, "cancelled");
    if (error_ || next_offset_ >= size_) return std::optional<Ticket>();
    uint64_t begin = next_offset_;
    uint64_t zero_end = ZerosFrom(begin);
    // A run of zeros that ends inside an aligned block belongs to that block's
    // data.
    if (zero_end != size_) zero_end = RoundDown(zero_end, options_.align);
    bool zero = zero_end > begin;
    if (!zero) zero_end = std::min(size_, begin + DataFrom(begin));
    next_offset_ = zero_end;
    return std::optional(Ticket{issued_++, {Range::FromTo(begin, zero_end), zero}});
  }

  // What cannot be mapped counts as data: the work that reads it meets the
  // error and decides.

  // End of the zeros that start at `begin`; `begin` itself where there is data.
  uint64_t ZerosFrom(uint64_t begin) {
    if (options_.zeros_are_data) return begin;
    uint64_t at = begin;
    Pin pin = layer_.Hold();
    while (at < size_) {
      Result<size_t> count = layer_.Map(Range::FromTo(at, size_), extents_);
      if (!count) return at;
      for (size_t i = 0; i < *count; ++i) {
        if (extents_[i].kind == Kind::kData) return extents_[i].guest.offset;
        at = extents_[i].guest.end();
      }
    }
    return at;
  }

  // Bytes of one chunk of data from `begin`: up to the next whole aligned block
  // of zeros.
  uint64_t DataFrom(uint64_t begin) {
    uint64_t limit = std::min(size_, begin + options_.chunk);
    uint64_t at = options_.zeros_are_data ? limit : begin;
    Pin pin = layer_.Hold();
    while (at < limit) {
      Result<size_t> count = layer_.Map(Range::FromTo(at, limit), extents_);
      if (!count) break;
      for (size_t i = 0; i < *count; ++i) {
        const Extent& extent = extents_[i];
        Range blocks = extent.guest.Inward(options_.align);
        if (extent.kind != Kind::kData && !blocks.empty()) return blocks.offset - begin;
        at = extent.guest.end();
      }
    }
    return limit - begin;
  }

  Result<> InTurn(const Ticket& ticket, const ScanFinish& finish) {
    std::unique_lock lock(turn_mutex_);
    turned_.Wait(lock, [&] { return turn_ == ticket.number || stopped_; });
    if (stopped_) return {};
    if (finish) TRY(finish());
    ++turn_;
    if (options_.progress) {
      options_.progress->done += ticket.chunk.range.length;
      if (!ticket.chunk.zero) options_.progress->moved += ticket.chunk.range.length;
    }
    turned_.NotifyAll();
    return {};
  }

  void Stop(Error error) {
    {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::move(error);
    }
    std::lock_guard lock(turn_mutex_);
    stopped_ = true;
    turned_.NotifyAll();
  }

  Layer& layer_;
  const ScanOptions& options_;
  const ScanWork& work_;
  const uint64_t size_;

  Mutex mutex_;  // guards what follows up to turn_mutex_
  uint64_t next_offset_ = 0, issued_ = 0;
  std::array<Extent, 64> extents_;
  std::optional<Error> error_;

  Mutex turn_mutex_;  // guards what follows; held while a result is taken in order
  CondVar turned_;
  uint64_t turn_ = 0;
  bool stopped_ = false;
};

}  // namespace

Result<> Scan(Layer& layer, const ScanOptions& options, const ScanWork& work) {
  return Scanner(layer, options, work).Run();
}

}  // namespace platter
