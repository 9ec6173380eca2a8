// How BAT and sector bitmaps are cached.
#pragma once

#include "base/math.h"

namespace platter::vhdx {
constexpr uint64_t kSliceBytes = 64 * kKiB;
constexpr uint64_t kCacheBytes = 16 * kMiB;
}  // namespace platter::vhdx
