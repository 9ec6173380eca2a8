// The content hash of a disk, whatever its format.
#pragma once

#include <string>

#include "io/engine/engine.h"

namespace platter {

// "sha256-tree-64k:HEX" (io/codec/content_hash.h says of what), holes nearly
// free.
Result<std::string> HashDisk(Layer& disk, unsigned threads, Progress& progress);

// "sha256:HEX" of all guest bytes in order, holes as zeros: what sha256sum says
// of the raw image.
Result<std::string> PlainHashDisk(Layer& disk, unsigned threads, Progress& progress);

}  // namespace platter
