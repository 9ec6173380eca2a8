// Compacting an image where it lies: clusters from its end move into holes before them, and the
// file ends where the last one that is left does.
#pragma once

#include "formats/in_place.h"

namespace platter::qcow2 {

// Nobody else uses the image meanwhile. Refused (kCorrupt) where a check finds more than leaks;
// leaks are repaired. An image whose data is encrypted by place needs its passphrase. A crash or a
// failure at any moment leaves an image that reads the same and has leaks at most.
Result<CompactReport> CompactQcow2(Store& store, const OpenOptions& open);

}  // namespace platter::qcow2
