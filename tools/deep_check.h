// Reading everything: check --deep.
#pragma once

#include "formats/format.h"
#include "io/engine/engine.h"

namespace platter {

// Reads and decompresses every byte that the disk's layers hold, with `threads`
// workers (0: one for each processor), and adds a corruption to `report` for
// each range that cannot be read.
Result<> DeepCheck(Layer& disk, unsigned threads, Progress& progress, CheckReport& report);

}  // namespace platter
