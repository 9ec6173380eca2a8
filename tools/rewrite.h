// Making an image anew beside the old one, which then gives way: for what cannot be changed where
// it lies. And what version 2 of qcow2 needs before.
#pragma once

#include <map>
#include <string>

#include "tools/console.h"
#include "tools/image_options.h"

namespace platter {

// The image at `path` becomes one with these options of its format; what it held, the parent that
// it names and its bitmaps stay. All or nothing: the new one takes the old one's name when it is
// whole. kUnsupported for images with snapshots, encryption or a data file.
Result<> RewriteImage(const std::string& path, const ImageOptions& image,
                      const std::map<std::string, std::string>& options, Console& console);

// The disk of the top layer alone holds no "zero" any more, where that cannot be said: units become
// nothing, or with `over_parent` data that is zero.
Result<> WriteOutZeros(Layer& layer, bool over_parent);

}  // namespace platter
