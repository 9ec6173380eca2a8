// A file without a name, for data that does not fit into memory; a folder for what needs one.
#pragma once

#include <string>

#include "base/result.h"
#include "io/fd.h"

namespace platter {

// An empty, writable file in TMPDIR (/var/tmp without it) that is gone when its descriptor is
// closed, however the program ends. The error names the folder.
Result<Fd> OpenTempFile();

// Makes an empty folder there that nobody else may enter, and returns its path. The caller removes
// it. The error names the folder in which it was to be.
Result<std::string> MakeTempFolder();

}  // namespace platter
