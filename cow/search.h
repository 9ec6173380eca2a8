// Parents that are known by an id and not by a name: found by looking into files.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "formats/format.h"
#include "io/info.h"

namespace platter {

// The path of the image of `format` whose Identity::id is reference.id, among the regular files in
// `directories` (not below them, and no symbolic links), looked at in that order and by name; one
// with a wanted Identity::version goes before one without. Only headers are read, of files that
// look like `format`. kIo (ENOENT) if there is none; what cannot be read is passed over.
Result<std::string> FindById(const Reference& reference, const Format& format,
                             const std::vector<std::string>& directories);

// Whether the image that says `identity` of itself is the parent that `reference` means. kRefused
// names what was recorded and what is there.
Result<> CheckIdentity(const Reference& reference, const Identity& identity);

}  // namespace platter
