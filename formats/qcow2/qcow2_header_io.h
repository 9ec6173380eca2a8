// The header in the file: read whole, and changed by one write of its first sector.
#pragma once

#include <vector>

#include "formats/qcow2/qcow2_parse.h"
#include "io/store.h"

namespace platter::qcow2 {

// The first cluster, or what there is of it. kCorrupt where that is no header.
Result<std::vector<std::byte>> ReadFirstCluster(Store& file);

Result<Header> ReadHeader(Store& file);

// Makes `header` that of the file. One sector decides, which a disk writes whole or not at all: it
// holds the header, its extensions, and where in the first cluster the backing name is. A name that
// does not fit in it is first written to a place that the old header does not use, with a Sync.
// Headers with more extensions than a sector holds are written sector by sector, where more than
// one differs. The caller syncs afterwards. kOutOfRange, kNoSpace if it does not fit.
Result<> PutHeader(Store& file, const Header& header);

}  // namespace platter::qcow2
