// The snapshots of convert --with-snapshots.
#pragma once

#include <string>

#include "io/engine/engine.h"
#include "tools/console.h"
#include "tools/image_options.h"

namespace platter {

// Makes `to`, which is new, read as the image at `path` does, and so do its snapshots, of the same
// names and in the same order. Each state is copied as far as it differs from the one before.
// kUnsupported where `to` holds no snapshots, or where one has VM state or another size than the
// disk.
Result<> CopyWithSnapshots(const std::string& path, const ImageOptions& image, Layer& to,
                           const CopyOptions& copy, Console& console);

}  // namespace platter
