// The second part of a copy job: which bytes are zeros, which are written plain and which packed.
#include <algorithm>

#include "base/check.h"
#include "io/engine/copy_worker.h"

namespace platter {

void CopyWorker::Sort(const CopyJob& job) {
  segments_.clear();
  units_.clear();
  packed_out_used_ = 0;
  for (const CopyJob::Run& run : job.runs) SortRun(run);
  // Where only packed units can be written, a unit is data or it is not.
  if (detect_ && options_.sparse > block_ && !only_packed_) KeepShortZeros();
}

void CopyWorker::SortRun(const CopyJob::Run& run) {
  for (uint64_t at = run.guest.offset; at < run.guest.end();) {
    uint64_t end = std::min(RoundDown(at, block_) + block_, run.guest.end());
    Append(SortPiece(Range::FromTo(at, end), run.place + (at - run.guest.offset)));
    at = end;
  }
}

CopyWorker::Segment CopyWorker::SortPiece(Range piece, size_t place) {
  if (detect_ && IsZero(buffer_.bytes().subspan(place, piece.length))) {
    return {Segment::kZero, piece, place, 0};
  }
  if (auto unit = Pack(piece, place)) {
    units_.push_back(*unit);
    return {Segment::kPacked, unit->guest, place, units_.size() - 1};
  }
  return {Segment::kPlain, piece, place, 0};
}

// The piece as a packed unit, if it is one, is to be one, and gets smaller by it.
std::optional<CopyWorker::PackedUnit> CopyWorker::Pack(Range piece, size_t place) {
  while (next_passed_ < passed_.size() && passed_[next_passed_].guest.offset < piece.offset) {
    ++next_passed_;
  }
  if (next_passed_ < passed_.size() && passed_[next_passed_].guest == piece) {
    const PackedUnit& unit = passed_[next_passed_];
    if (unit.bytes.size() <= PackedRoom()) return unit;
    if (!only_packed_) return std::nullopt;
  }
  if (!compressor_ || !IsAligned(piece.offset, unit_)) return std::nullopt;
  // The source ends inside this unit; a target that takes nothing else is new, and zeros follow.
  Bytes from = buffer_.bytes().subspan(place, unit_);
  const uint64_t taken = piece.length;
  if (only_packed_ && taken < unit_) {
    piece = Range::FromTo(piece.offset, std::min(piece.offset + unit_, to_.info().size));
  }
  if (piece.length != unit_ && piece.end() != to_.info().size) return std::nullopt;
  // Not over the bytes of what comes after in the buffer: nothing comes after a disk's end.
  if (taken < unit_) std::ranges::fill(from.subspan(taken), std::byte{0});
  Bytes into = packed_out_.bytes().subspan(packed_out_used_, PackedRoom());
  size_t size = compressor_->Compress(from, into);
  if (size == 0) return std::nullopt;
  packed_out_used_ += size;
  return PackedUnit{piece, into.first(size)};
}

void CopyWorker::Append(const Segment& segment) {
  if (!segments_.empty()) {
    Segment& last = segments_.back();
    if (last.kind == segment.kind && last.guest.end() == segment.guest.offset) {
      last.guest.length += segment.guest.length;
      return;
    }
  }
  segments_.push_back(segment);
}

// Runs of zeros that the caller finds too short for a hole are data.
void CopyWorker::KeepShortZeros() {
  std::vector<Segment> sorted;
  sorted.swap(segments_);
  for (Segment& segment : sorted) {
    if (segment.kind == Segment::kZero && segment.guest.length < options_.sparse) {
      segment.kind = Segment::kPlain;
    }
    Append(segment);
  }
}

}  // namespace platter
