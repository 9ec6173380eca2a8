// Going through a whole BAT, which may be half a GiB long and mostly a hole.
#pragma once

#include <cstdint>
#include <functional>

#include "base/range.h"
#include "base/result.h"
#include "io/store.h"

namespace platter::vhdx {

// Calls `look(index, raw)` for each entry of the BAT at `bat` that is not 0, ascending, until it
// fails. `entries`: which ones, by index.
Result<> ScanBat(Store& file, Range bat, Range entries,
                 const std::function<Result<>(uint64_t, uint64_t)>& look);

}  // namespace platter::vhdx
