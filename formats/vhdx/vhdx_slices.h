// How BAT and sector bitmaps are cached.
#pragma once

#include "base/math.h"

namespace platter::vhdx {
constexpr uint64_t kSliceBytes = 64 * kKiB;
constexpr uint64_t kCacheBytes = 16 * kMiB;
// The slice that holds the file's byte `offset`: regions and bitmaps begin at multiples of a MiB.
constexpr uint64_t SliceOf(uint64_t offset) { return RoundDown(offset, kSliceBytes); }
}  // namespace platter::vhdx
