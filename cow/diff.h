// What differs between two states of one image, told from its tables: nothing is read.
#pragma once

#include <functional>

#include "io/layer.h"

namespace platter {

// Calls `visit` for the bytes of `within` in which `a` and `b` may differ, ascending, neighbours
// joined, until it answers false. Both are layers (not chains) that show the same image file: a
// snapshot, or its disk. Bytes at the same place in the file are the same, since what two states
// share is never overwritten; bytes at different places count as different, and so does what only
// the longer one has. While one of the two is in use, the caller holds its Disk's Pin.
Result<> VisitChanged(Layer& a, Layer& b, Range within, const std::function<bool(Range)>& visit);

}  // namespace platter
