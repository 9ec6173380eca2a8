// What `platter info` shows of a qcow2 image.
#pragma once

#include <vector>

#include "base/result.h"
#include "formats/qcow2/qcow2_parse.h"
#include "io/info.h"

namespace platter::qcow2 {

// Everything that the header and the tables say, under qemu-img's JSON names where it has them.
// `writable` is the caller's to set. With LUKS the facts of its header can be added: AddLuksFacts
// in qcow2_crypto.h.
Result<Info> MakeInfo(const Header& header, const std::vector<Snapshot>& snapshots,
                      const std::vector<Bitmap>& bitmaps);

}  // namespace platter::qcow2
