// `platter snapshot diff`: what changed between two states of an image.
#pragma once

#include <string>

#include "tools/console.h"
#include "tools/image_options.h"

namespace platter {

struct SnapshotDiff {
  ImageOptions image;
  std::string path;
  std::string from, to;         // snapshots, by id or name; `to` empty: the disk as it is
  std::string output, picture;  // "human" or "json"; a file to draw into instead
};

Result<> ShowSnapshotDiff(const SnapshotDiff& diff, Console& console);

}  // namespace platter
