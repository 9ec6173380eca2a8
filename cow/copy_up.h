// CopyUp: what makes an image independent of the parents that it has. Inside cow/.
#pragma once

#include "cow/disk.h"
#include "io/engine/engine.h"

namespace platter {

// Copies into the top layer of `disk` what it reads from its parents wherever `instead` (null:
// zeros) reads differently, so that the top layer over `instead` reads as `disk` does. Not durable
// before the next Flush. Nobody else writes to the disk meanwhile.
Result<> CopyUp(Disk& disk, Disk* instead, unsigned threads, Progress* progress);

}  // namespace platter
