// A file without a name, for data that does not fit into memory.
#pragma once

#include "base/result.h"
#include "io/fd.h"

namespace platter {

// An empty, writable file in TMPDIR (/var/tmp without it) that is gone when its descriptor is
// closed, however the program ends. The error names the folder.
Result<Fd> OpenTempFile();

}  // namespace platter
