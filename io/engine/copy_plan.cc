#include "io/engine/copy_plan.h"

#include <algorithm>

#include "base/check.h"
#include "io/buffer.h"
#include "io/engine/extent_io.h"

namespace platter {
namespace {

// Read, looked through for zeros and written while it is in a core's L2 cache.
constexpr uint64_t kChunk = kMiB;
constexpr uint64_t kLargestChunk = 2 * kMiB;
// Fragments that one job collects at most.
constexpr size_t kMostExtents = 256;
constexpr size_t kMostZeros = 64;

uint64_t ChunkFor(uint64_t from_unit, uint64_t to_unit) {
  uint64_t chunk = std::max({kChunk, from_unit, to_unit});
  return chunk > kLargestChunk ? kLargestChunk : RoundUp(chunk, std::max<uint64_t>(to_unit, 1));
}

// Less costs more reservations than zeros that are left out save.
constexpr uint64_t kLeastZeros = 64 * kKiB;

}  // namespace

uint64_t ZeroUnit(const Info& target) {
  return target.new_units_zero ? std::min<uint64_t>(target.unit, kLeastZeros) : target.unit;
}

CopyPlan::CopyPlan(Layer& from, const Layer& to, Range range, const CopyOptions& options,
                   MapCursor::Lost lost)
    : options_(options),
      end_(range.end()),
      chunk_(ChunkFor(from.info().unit, to.info().unit)),
      cursor_(from, range, std::move(lost)) {
  // Parts that are to be left alone forbid widening; without units in the target a page will do.
  const uint64_t zero_unit = ZeroUnit(to.info());
  const uint64_t unit = zero_unit == 0 ? Buffer::kAlign : zero_unit;
  grain_ = options.skip_parent && !to.info().only_packed ? 1 : std::min(unit, chunk_);
  // Jobs that share a unit of the target wait for one another; a packed unit of the source that is
  // cut in two would be unpacked twice.
  cut_ = grain_;
  for (uint64_t whole : {uint64_t{to.info().unit}, uint64_t{from.info().unit}}) {
    if (whole > cut_ && whole <= chunk_ && IsAligned(whole, cut_)) cut_ = whole;
  }
}

CopyPlan::Fate CopyPlan::FateOf(const Extent& extent) const {
  bool from_below = extent.kind == Kind::kParent || extent.depth > 0;
  if (from_below && options_.skip_parent) return Fate::kSkip;
  if (extent.kind == Kind::kData) return Fate::kCopy;
  if (options_.sparse == 0) return Fate::kCopy;
  return options_.target_is_zero ? Fate::kSkip : Fate::kZero;
}

Result<std::optional<CopyJob>> CopyPlan::Next() {
  CopyJob job;
  uint64_t begin = cursor_.at();
  while (!cursor_.done()) {
    if (TRY(SkipHole(job))) {
      // Holes alone make no job where there is nothing to do for them, but progress is to be seen
      // and a cancel to be heard now and then.
      if (job.zeros.size() >= kMostZeros || cursor_.at() - begin >= kTiB) break;
      continue;
    }
    uint64_t room = chunk_ - job.buffer;
    bool full =
        RoundDown(cursor_.at() + room, cut_) <= cursor_.at() || job.extents.size() >= kMostExtents;
    if (full) break;
    TRY(AddRun(job));
  }
  if (cursor_.at() == begin) return std::nullopt;
  job.covered = cursor_.at() - begin;
  job.number = next_number_++;
  return job;
}

// Passes over what the next extent and the grain allow of a hole; false if data comes next.
Result<bool> CopyPlan::SkipHole(CopyJob& job) {
  Extent extent = TRY(cursor_.Peek());
  Fate fate = FateOf(extent);
  if (fate == Fate::kCopy) return false;
  Range hole = extent.guest;
  if (hole.end() != end_) hole = Range::FromTo(hole.offset, RoundDown(hole.end(), grain_));
  if (hole.offset >= hole.end()) return false;
  if (fate == Fate::kZero) AddZero(job, hole);
  cursor_.Advance(hole.length);
  return true;
}

void CopyPlan::AddZero(CopyJob& job, Range range) {
  if (!job.zeros.empty() && job.zeros.back().end() == range.offset) {
    job.zeros.back().length += range.length;
  } else {
    job.zeros.push_back(range);
  }
}

void CopyPlan::TakePart(CopyJob& job, const Extent& extent, uint64_t length) {
  job.extents.push_back(ExtentPrefix(extent, length));
  if (cursor_.pin() && (job.pins.empty() || job.pins.back() != cursor_.pin())) {
    job.pins.push_back(cursor_.pin());
  }
  cursor_.Advance(length);
}

// Data, with the holes in it that are too small for the target to express, as far as there is room.
Result<> CopyPlan::AddRun(CopyJob& job) {
  uint64_t begin = cursor_.at();
  uint64_t limit = std::min(end_, RoundDown(begin + chunk_ - job.buffer, cut_));
  CopyJob::Run run{
      .guest = {begin, 0}, .first = job.extents.size(), .count = 0, .place = job.buffer};
  while (cursor_.at() < limit) {
    Extent extent = TRY(cursor_.Peek());
    uint64_t end = std::min(extent.guest.end(), limit);
    Fate fate = FateOf(extent);
    if (fate != Fate::kCopy) {
      // A hole that holds a whole grain, or the end of the disk, ends the run at the next border.
      uint64_t border = std::min(RoundUp(cursor_.at(), grain_), end_);
      bool ends = extent.guest.end() >= border + grain_ || extent.guest.end() == end_;
      if (ends) limit = std::min(limit, border);
      end = std::min(end, limit);
    }
    if (end > cursor_.at()) TakePart(job, extent, end - cursor_.at());
    if (job.extents.size() >= 2 * kMostExtents)
      limit = std::min(limit, RoundUp(cursor_.at(), grain_));
  }
  run.guest.length = cursor_.at() - begin;
  run.count = job.extents.size() - run.first;
  job.buffer += run.guest.length;
  job.runs.push_back(run);
  return {};
}

}  // namespace platter
