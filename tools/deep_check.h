// Reading everything: check --deep.
#pragma once

#include "formats/format.h"
#include "io/engine/engine.h"

namespace platter {

// Reads and decompresses every byte of the disk, with `threads` workers (0: one for each
// processor), and adds a corruption to `report` for each range that cannot be read, whose text
// begins with `what`.
Result<> DeepCheck(Layer& disk, std::string_view what, unsigned threads, Progress& progress,
                   CheckReport& report);

}  // namespace platter
