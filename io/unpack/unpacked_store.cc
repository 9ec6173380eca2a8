// Two stores over one idea, a sparse temporary file of which parts have been filled:
//
//   StreamStore    one decoder goes from the start. mutex_ guards it; whoever needs more than there
//                  is takes the mutex and unpacks as far as it needs, the others wait. made_ only
//                  grows, after the bytes are in the file, so bytes below it are read without a
//                  lock.
//   IndexedStore   blocks are filled each by one thread, several at a time. mutex_ guards the state
//                  of the blocks and how many are being filled; it is not held while that is done.
//
// Neither calls out under its mutex but to the packed store, which may be one of these itself:
// the order is from the inner to the outer wrapping.
#include "io/unpack/unpacked_store.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "io/iov.h"
#include "io/read_only_store.h"
#include "io/unpack/index.h"
#include "io/unpack/spool.h"
#include "io/unpack/unpacker.h"

namespace platter {

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPiece = kMiB;       // unpacked at once
constexpr uint64_t kMostAtOnce = 16;  // blocks

class UnpackedStore : public ReadOnlyStore {
 public:
  UnpackedStore(std::unique_ptr<Store> packed, Packing packing, UnpackLimits limits,
                internal::Spool spool)
      : packed_(std::move(packed)), packing_(packing), limits_(limits), spool_(std::move(spool)) {}

  Caps caps() const override { return {}; }
  const std::string& name() const override { return packed_->name(); }

 protected:
  std::unexpected<Error> Refused() const override {
    return Fail(Code::kReadOnly, "'{}' is compressed with {}, which can only be read", name(),
                PackingName(packing_));
  }
  std::unexpected<Error> PastEnd(uint64_t at, uint64_t length, uint64_t size) const {
    return Fail(Code::kCorrupt, "'{}': {} bytes at {:#x} reach past the end (unpacked size {:#x})",
                name(), length, at, size);
  }
  std::unexpected<Error> OutOfRange(uint64_t at, uint64_t size) const {
    return Fail(Code::kOutOfRange, "'{}': {:#x} is past the end (unpacked size {:#x})", name(), at,
                size);
  }
  std::string Quoted() const { return fmt::format("'{}'", name()); }

  // Whether content of `size` bytes may come out of `taken`.
  Result<> CheckLimits(uint64_t size, uint64_t taken) const {
    if (size > limits_.most) {
      return Fail(Code::kRefused,
                  "unpacks to more than {} bytes; give --unpack-limit SIZE for more", limits_.most);
    }
    if (!limits_.given && size > UnpackLimits::kFreeBytes &&
        size / UnpackLimits::kMostRatio > taken) {
      return Fail(
          Code::kRefused,
          "unpacks to more than {} times its size; give --unpack-limit SIZE if you trust it",
          UnpackLimits::kMostRatio);
    }
    return {};
  }

  const std::unique_ptr<Store> packed_;
  const Packing packing_;
  const UnpackLimits limits_;
  // Filled by Size(), too: how much has been unpacked is no part of what the store is.
  mutable internal::Spool spool_;
};

class StreamStore final : public UnpackedStore {
 public:
  StreamStore(std::unique_ptr<Store> packed, Packing packing, UnpackLimits limits,
              internal::Spool spool, Range host, std::unique_ptr<Decoder> decoder,
              std::optional<uint64_t> size)
      : UnpackedStore(std::move(packed), packing, limits, std::move(spool)),
        size_(size),
        buffer_(kPiece),
        unpacker_(
            std::make_unique<Unpacker>(*packed_, host, PackingName(packing), std::move(decoder))) {}

  Result<uint64_t> Size() const override {
    if (size_) return *size_;
    TRY(Extend(UINT64_MAX));
    return made_.load(std::memory_order_acquire);
  }

  using Store::Read;
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    const uint64_t length = IovLength(into);
    auto end = CheckedAdd(at, length);
    if (end) TRY(Extend(*end));
    const uint64_t made = made_.load(std::memory_order_acquire);
    if (!FitsIn(at, length, made)) return PastEnd(at, length, made);
    return spool_.file().Read(at, into);
  }

  Result<Run> FindRun(uint64_t at) override {
    TRY(Extend(at == UINT64_MAX ? at : at + 1));
    const uint64_t made = made_.load(std::memory_order_acquire);
    if (at >= made) return OutOfRange(at, made);
    Run run = TRY(spool_.file().FindRun(at));
    run.length = std::min(run.length, made - at);
    return run;
  }

  size_t TryRead(uint64_t at, std::span<const iovec> into) override {
    return ended_.load(std::memory_order_acquire) ? spool_.file().TryRead(at, into) : 0;
  }
  int fd() const override {
    return ended_.load(std::memory_order_acquire) ? spool_.file().fd() : -1;
  }

 private:
  // What was made reaches `to`, or the end of the content, and if it is the end then everything has
  // been verified.
  Result<> Extend(uint64_t to) const {
    const bool to_end = size_ && to >= *size_;
    auto reached = [&] {
      return ended_.load(std::memory_order_acquire) ||
             (!to_end && made_.load(std::memory_order_acquire) >= to);
    };
    if (reached()) return {};
    std::lock_guard lock(mutex_);
    while (!reached()) {
      if (failed_) return std::unexpected(failed_->Clone());
      TRY(CheckBrief());
      if (auto more = UnpackPiece(); !more) {
        Error error = std::move(more.error()).WithPrefix(Quoted());
        failed_ = error.Clone();
        return std::unexpected(std::move(error));
      }
    }
    return {};
  }

  Result<> CheckBrief() const {
    const uint64_t made = made_.load(std::memory_order_relaxed);
    if (!limits_.brief || limits_.given || made < UnpackLimits::kBriefBytes) return {};
    if (Clock::now() - opened_ < std::chrono::seconds(UnpackLimits::kBriefSeconds)) return {};
    return Fail(Code::kRefused,
                "'{}': info unpacks no more than this ({} MiB); give --unpack-limit SIZE to let it "
                "go on",
                name(), made / kMiB);
  }

  Result<> UnpackPiece() const {
    const uint64_t made = made_.load(std::memory_order_relaxed);
    const size_t count = TRY(unpacker_->Next(buffer_.bytes()));
    const uint64_t end = made + count;
    if (auto within = CheckLimits(end, unpacker_->taken()); !within) return within;
    if (size_ && (end > *size_ || (count < buffer_.size() && end < *size_))) {
      return Fail(Code::kCorrupt, "the content has {} bytes, {} are announced", end, *size_);
    }
    TRY(spool_.Put(made, std::as_const(buffer_).bytes().first(count)));
    TRY(spool_.file().Resize(end));
    made_.store(end, std::memory_order_release);
    if (count < buffer_.size()) {
      unpacker_.reset();
      ended_.store(true, std::memory_order_release);
    }
    return {};
  }

  const std::optional<uint64_t> size_;  // as the file announces it
  const Clock::time_point opened_ = Clock::now();
  mutable Mutex mutex_;  // guards buffer_, unpacker_, failed_ and the growth of the spool
  mutable Buffer buffer_;
  mutable std::unique_ptr<Unpacker> unpacker_;
  mutable std::optional<Error> failed_;
  mutable std::atomic<uint64_t> made_{0};  // bytes of content in the spool
  mutable std::atomic<bool> ended_{false};
};

class IndexedStore final : public UnpackedStore {
 public:
  IndexedStore(std::unique_ptr<Store> packed, Packing packing, UnpackLimits limits,
               internal::Spool spool, UnpackIndex index)
      : UnpackedStore(std::move(packed), packing, limits, std::move(spool)),
        size_(index.size),
        decoder_memory_(std::max(index.memory, kMiB)),
        blocks_(std::move(index.blocks)),
        states_(blocks_.size(), kAbsent),
        free_slots_(std::clamp(limits.memory / decoder_memory_, uint64_t{1}, kMostAtOnce)) {}

  Result<> Prepare() {
    if (!limits_.brief) TRY_AS(Quoted(), CheckLimits(size_, TRY(packed_->Size())));
    return spool_.file().Resize(size_);
  }

  Result<uint64_t> Size() const override { return size_; }

  using Store::Read;
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    const uint64_t length = IovLength(into);
    if (!FitsIn(at, length, size_)) return PastEnd(at, length, size_);
    const Range range{at, length};
    for (size_t i = BlockAt(at); i < blocks_.size() && blocks_[i].guest.Overlaps(range); ++i) {
      TRY_AS(Quoted(), Need(i));
    }
    return spool_.file().Read(at, into);
  }

  // Not past the end of a block: what lies beyond may not be unpacked yet.
  Result<Run> FindRun(uint64_t at) override {
    if (at >= size_) return OutOfRange(at, size_);
    const size_t i = BlockAt(at);
    TRY_AS(Quoted(), Need(i));
    Run run = TRY(spool_.file().FindRun(at));
    run.length = std::min(run.length, blocks_[i].guest.end() - at);
    return run;
  }

 private:
  enum State : uint8_t { kAbsent, kBusy, kPresent, kDamaged };

  size_t BlockAt(uint64_t at) const {
    auto after = std::ranges::upper_bound(
        blocks_, at, {}, [](const PackedBlock& block) { return block.guest.offset; });
    return static_cast<size_t>(after - blocks_.begin()) - (after == blocks_.begin() ? 0 : 1);
  }

  // Block `i` is in the spool. What is wrong with a block stays wrong, and is not tried again: a
  // deep check asks for every part of it.
  Result<> Need(size_t i) {
    {
      std::unique_lock lock(mutex_);
      changed_.Wait(
          lock, [&] { return states_[i] != kBusy && (states_[i] != kAbsent || free_slots_ > 0); });
      if (states_[i] == kPresent) return {};
      if (states_[i] == kDamaged) return std::unexpected(damage_.at(i).Clone());
      states_[i] = kBusy;
      --free_slots_;
    }
    auto filled = Fill(blocks_[i]);
    std::lock_guard lock(mutex_);
    states_[i] = filled ? kPresent : kAbsent;
    if (!filled && filled.error().code() == Code::kCorrupt) {
      states_[i] = kDamaged;
      damage_.emplace(i, filled.error().Clone());
    }
    ++free_slots_;
    changed_.NotifyAll();
    return filled;
  }

  Result<> Fill(const PackedBlock& block) {
    auto decoder = TRY(MakeBlockDecoder(packing_, block, decoder_memory_));
    Unpacker unpacker(*packed_, block.host, PackingName(packing_), std::move(decoder));
    // One byte more than there should be, so that the end shows.
    Buffer buffer(std::min<uint64_t>(kPiece, block.guest.length + 1));
    uint64_t made = 0;
    while (true) {
      const size_t count = TRY(unpacker.Next(buffer.bytes()));
      if (made + count > block.guest.length) break;
      TRY(spool_.Put(block.guest.offset + made, std::as_const(buffer).bytes().first(count)));
      made += count;
      if (count == buffer.size()) continue;
      if (made == block.guest.length) return {};
      break;
    }
    return Fail(Code::kCorrupt, "the {} block at offset {:#x} does not hold the {} bytes announced",
                PackingName(packing_), block.host.offset, block.guest.length);
  }

  const uint64_t size_;
  const uint64_t decoder_memory_;
  const std::vector<PackedBlock> blocks_;
  Mutex mutex_;  // guards what follows
  CondVar changed_;
  std::vector<State> states_;
  std::map<size_t, Error> damage_;  // of blocks that are kDamaged
  uint64_t free_slots_;
};

}  // namespace

Result<std::unique_ptr<Store>> OpenUnpacked(std::unique_ptr<Store> packed, Packing packing,
                                            const UnpackLimits& limits) {
  const std::string name = packed->name();
  auto spool = TRY(internal::Spool::Open(name));
  auto index = ReadIndex(*packed, packing);
  if (index && !index->blocks.empty() && index->memory <= limits.memory) {
    auto store = std::make_unique<IndexedStore>(std::move(packed), packing, limits,
                                                std::move(spool), std::move(*index));
    TRY(store->Prepare());
    return store;
  }
  const uint64_t size = TRY(packed->Size());
  auto decoder = TRY_AS(fmt::format("'{}'", name), MakeDecoder(packing, limits.memory));
  return std::make_unique<StreamStore>(std::move(packed), packing, limits, std::move(spool),
                                       Range{0, size}, std::move(decoder),
                                       index ? std::optional(index->size) : std::nullopt);
}

}  // namespace platter
