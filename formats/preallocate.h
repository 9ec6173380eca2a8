// Space for guest bytes that lie one after the other in a store.
#pragma once

#include "base/range.h"
#include "base/result.h"
#include "io/layer.h"
#include "io/store.h"

namespace platter {

// Backs `range` of `store`, which reads as zeros: kFalloc reserves the space, kFull writes zeros.
// kOff and kMetadata do nothing: whether there is metadata to be made is for the format to know.
Result<> PreallocateBytes(Store& store, Range range, Preallocation preallocation);

}  // namespace platter
