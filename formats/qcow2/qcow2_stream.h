// A new image as a stream, for pipes: header, refcounts, L1 and L2 tables, and then nothing but
// guest data in guest order.
#pragma once

#include <memory>

#include "formats/format.h"

namespace platter::qcow2 {

// See Format::stream. kUnsupported for what does not fit into one stream, or not in this order: a
// data file, encryption, preallocation.
Result<std::unique_ptr<ImageStream>> StreamQcow2(const CreateOptions& options);

}  // namespace platter::qcow2
