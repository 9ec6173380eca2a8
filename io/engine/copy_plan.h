// What a copy does in which order: the source's map cut into jobs. Inside the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "io/engine/engine.h"
#include "io/engine/map_cursor.h"
#include "io/layer.h"

namespace platter {

// One worker's portion: some guest ranges whose bytes are to be copied, together at most
// CopyPlan::chunk(), and the holes between and before them.
struct CopyJob {
  uint64_t number = 0;  // jobs are numbered in guest order, from 0
  struct Run {          // guest-contiguous
    Range guest;
    size_t first, count;  // of extents
    size_t place;         // of its first byte in the worker's buffer
  };
  std::vector<Run> runs;        // ascending; begin and end on the target's units where they can
  std::vector<Extent> extents;  // of all runs, zeros inside them included
  std::vector<Range> zeros;     // to be zeroed in the target
  std::vector<std::shared_ptr<const Pin>> pins;  // of the extents
  size_t buffer = 0;                             // bytes that the runs take
  uint64_t covered = 0;                          // guest bytes, holes included, for the progress
};

// Bytes: pieces in which zeros are looked for and left out. The target's unit, 0 if it has none;
// less where a unit may be written in part.
uint64_t ZeroUnit(const Info& target);

// Cuts the source into jobs. What costs is what is allocated, never the size of the disk: holes are
// skipped by one Map answer each. Runs are widened to whole units of the target where holes
// permit, so that no two jobs share a unit and no unit needs fill from the target. One thread at a
// time.
class CopyPlan {
 public:
  CopyPlan(Layer& from, const Layer& to, Range range, const CopyOptions& options,
           MapCursor::Lost lost);

  // The next job, or nothing at the end. `cancelled` is asked on the way through holes.
  Result<std::optional<CopyJob>> Next();

  // Bytes: how much a job may hold; a multiple of the target's unit where that is small enough.
  size_t chunk() const { return chunk_; }
  // Bytes: the granularity of runs.
  uint64_t grain() const { return grain_; }

 private:
  enum class Fate : uint8_t { kCopy, kZero, kSkip };
  Fate FateOf(const Extent& extent) const;
  Result<> AddRun(CopyJob& job);
  Result<bool> SkipHole(CopyJob& job);
  void AddZero(CopyJob& job, Range range);
  void TakePart(CopyJob& job, const Extent& extent, uint64_t length);

  const CopyOptions& options_;
  const uint64_t end_;
  uint64_t chunk_, grain_;
  uint64_t cut_;  // runs that fill the job up end on multiples of it
  MapCursor cursor_;
  uint64_t next_number_ = 0;
};

}  // namespace platter
