// The work of `platter convert`, apart from its arguments.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/engine/engine.h"
#include "tools/console.h"
#include "tools/image_options.h"
#include "tools/progress.h"

namespace platter {

struct ConvertOptions {
  std::vector<std::string> sources;  // paths; "-" is standard input (alone)
  ImageOptions source;
  std::string target;  // path, or "-" for standard output
  std::string target_format = "raw";
  uint64_t size_multiple = 1;  // bytes: the new image's size is rounded up to it
  std::map<std::string, std::string> target_options;
  std::string parent, parent_format;  // -B: the output is an overlay of it
  std::optional<Secret> target_secret;
  bool target_direct = false;
  bool no_create = false, target_is_zero = false, force = false;
  bool verify = false, reproducible = false;
  bool bitmaps = false, skip_broken_bitmaps = false;  // the source's go along
  bool with_snapshots = false;                        // likewise
  // An incremental backup: only what is dirty in this bitmap of the source goes into the output,
  // which is an overlay of `parent`, the backup before.
  std::string since;
  // When the output is there, this bitmap of the source begins anew: RestartBitmap.
  std::string new_bitmap;
  bool resume = false;  // go on where an attempt was interrupted, and let another one go on
  CopyOptions copy;
  ProgressOptions progress;
};

struct ConvertOutcome {
  uint64_t unreadable_bytes = 0;  // zeros in the output, by --salvage
};

// All or nothing: on error no output file is left under its name (an existing
// target of -n may be half written, which its user accepted).
Result<ConvertOutcome> RunConvert(ConvertOptions& options, Console& console);

// `-o help`: the exit code.
int PrintFormatOptions(const std::string& format, Console& console);

}  // namespace platter
