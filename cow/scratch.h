// A disk whose changes are thrown away when it is closed.
#pragma once

#include <memory>

#include "base/result.h"
#include "cow/disk.h"

namespace platter {

// `parents`, which are only read, below a new qcow2 layer in a file without a name (in TMPDIR):
// gone with the disk, however the program ends. kIo, kNoSpace.
Result<std::unique_ptr<Disk>> StackScratch(std::unique_ptr<Disk> parents);

}  // namespace platter
