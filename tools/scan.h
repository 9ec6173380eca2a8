// Walking a disk's content with all cores, results in order: the shape of hash,
// check --deep and
// --verify.
#pragma once

#include <functional>

#include "io/engine/engine.h"

namespace platter {

struct ScanOptions {
  unsigned threads = 0;         // 0: one for each processor
  uint64_t align = 65536;       // chunks start at multiples of it
  uint64_t chunk = 1 << 20;     // bytes of data in one chunk at most, a multiple of `align`
  bool zeros_are_data = false;  // holes and zeros are not told apart
  Progress* progress = nullptr;
};

struct ScanChunk {
  Range range;
  bool zero;  // reads as zeros, known without reading; may be longer than `chunk`
};

// Calls `work` for consecutive chunks that cover the disk, from several threads
// at once. What it returns is called in ascending order, one at a time. The
// first error ends the scan.
using ScanFinish = std::function<Result<>()>;
using ScanWork = std::function<Result<ScanFinish>(const ScanChunk&)>;
Result<> Scan(Layer& layer, const ScanOptions& options, const ScanWork& work);

}  // namespace platter
