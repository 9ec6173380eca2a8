// One worker of a copy: loads a job, sorts its bytes, and puts them into the target. Inside the
// engine.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/sync.h"
#include "io/buffer.h"
#include "io/codec/codec.h"
#include "io/engine/copy_plan.h"
#include "io/engine/engine.h"
#include "io/engine/extent_io.h"
#include "io/engine/pace.h"

namespace platter {

// What the workers of one copy share.
struct CopyShared {
  CopyShared(Layer& source, Layer& target, Range range, const CopyOptions& opts)
      : from(source),
        to(target),
        options(opts),
        plan(source, target, range, opts,
             opts.salvage ? MapCursor::Lost([this](Range r, const Error& e) { Unreadable(r, e); })
                          : MapCursor::Lost()),
        rate(opts.bytes_per_second) {}

  void Unreadable(Range range, const Error& error);
  // The error of the earliest job is the one that is told.
  void Stop(uint64_t number, Error error);
  bool cancelled() const { return options.progress && options.progress->cancel; }

  Layer& from;
  Layer& to;
  const CopyOptions& options;

  Mutex plan_mutex;  // guards plan; held while the source is mapped, before every lock of a layer
  CopyPlan plan;

  Turnstile turnstile;  // the order in which space is reserved
  RateLimit rate;
  std::atomic<bool> stop{false};
  // Whether blocks are shared (reflink). Found out during the first job's turn, so that it does not
  // depend on who is faster.
  enum class Sharing : uint8_t { kUnknown, kNo, kYes };
  std::atomic<Sharing> sharing{Sharing::kUnknown};

  Mutex report_mutex;  // guards what follows; held while options.unreadable runs
  uint64_t failed_number = UINT64_MAX;
  std::optional<Error> failure;
};

class CopyWorker {
 public:
  explicit CopyWorker(CopyShared& shared);

  // Jobs until there are no more, or one of any worker fails.
  void Run();

 private:
  // A run of bytes with one way of writing them.
  struct Segment {
    enum Kind : uint8_t { kZero, kPlain, kPacked } kind;
    Range guest;
    size_t place;       // kPlain: in buffer_
    size_t first_unit;  // kPacked: in units_
  };
  struct PackedUnit {
    Range guest;
    ConstBytes bytes;
  };
  struct Held {  // a reservation that waits for its bytes
    std::unique_ptr<Reservation> reservation;
    const Segment* segment;
    uint64_t asked_end;  // of the range that was asked for; the layer may keep others from it, too
  };

  Result<std::optional<CopyJob>> NextJob();
  Result<> Do(CopyJob& job);

  Result<> Load(const CopyJob& job);
  Result<> LoadGroup(std::span<const Extent> extents, size_t place);
  Result<> LoadOneSalvaging(const Extent& extent, size_t place);
  bool CanPass(const Extent& extent) const;
  Result<> LoadPassed(const Extent& extent, size_t place, size_t& packed_used);

  void Sort(const CopyJob& job);
  void SortRun(const CopyJob::Run& run);
  Segment SortPiece(Range piece, size_t place);
  std::optional<PackedUnit> Pack(Range piece, size_t place);
  size_t PackedRoom() const;
  void Append(const Segment& segment);
  void KeepShortZeros();

  bool EnterTurn(const CopyJob& job);
  Result<> Place(const CopyJob& job);
  Result<> ReserveSegment(const CopyJob& job, const Segment& segment);
  Result<> FinishHeld(const CopyJob& job);
  Result<> WritePlain(Held& held);
  Result<> WritePacked(Held& held);

  Result<bool> MayShare(const CopyJob& job);
  Result<> ShareBlocks(const CopyJob& job, Held& held);

  CopyShared& shared_;
  Layer& to_;
  const CopyOptions& options_;
  const uint64_t unit_;     // of the target; 0: none
  const uint64_t block_;    // bytes: in which zeros are looked for
  const bool detect_;       // zeros
  const bool ordered_;      // the target allocates: jobs reserve in turn
  const bool only_packed_;  // the target takes nothing else
  const bool compress_;
  Codec::Id pass_ = Codec::kNone;  // packed units of the source that stay as they are
  uint32_t pass_unit_ = 0;

  Buffer buffer_;      // the guest bytes of a job, run after run
  Buffer packed_in_;   // packed units of the source, as read
  Buffer packed_out_;  // units packed here
  size_t packed_out_used_ = 0;
  ExtentReader reader_;
  std::unique_ptr<Compressor> compressor_;
  std::optional<Error> broken_;  // the compressor could not be made
  std::vector<PackedUnit> passed_;
  size_t next_passed_ = 0;
  std::vector<PackedUnit> units_;
  std::vector<Segment> segments_;
  std::vector<Held> held_;
  Turnstile::Turn turn_;
  bool share_ = false;  // this job's blocks are shared, not moved
};

// The codec that packs units of `layer`; kNone if it takes none.
Codec::Id PackedCodec(const Info& info);

}  // namespace platter
