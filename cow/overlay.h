// Overlays: a snapshot that is a file of its own, and many images over one.
#pragma once

#include <string>
#include <vector>

#include "cow/create.h"
#include "cow/disk.h"
#include "io/engine/engine.h"

namespace platter {

struct ExternalSnapshotOptions {
  DiskOptions open;            // of the image
  std::string overlay_format;  // empty: the image's own where it can have parents, else qcow2
  std::map<std::string, std::string> overlay_options;
};

// The image at `path` becomes an overlay that holds nothing yet; what it holds now is at
// `base_path`, in the same folder or at least on the same file system, and is its parent.
// `base_path` must not exist. At any moment there is the whole old image under `path`, or the whole
// new one: they change places by one rename. A crash before that may leave `base_path` as a second
// name of the image; the next attempt takes it over.
//
// kRefused where somebody has the image open for writing, or `base_path` exists; kUnsupported where
// the file system has no second names (hard links).
Result<> TakeExternalSnapshot(const std::string& path, const std::string& base_path,
                              const ExternalSnapshotOptions& options, const Gate& gate,
                              std::vector<std::string>* warnings);

// "dir/disk.NAME.qcow2" for "dir/disk.qcow2".
std::string SnapshotPath(const std::string& path, const std::string& name);

struct CloneOptions {
  DiskOptions open;    // of the base
  std::string format;  // of the clones; empty: the base's own where it can have parents, else qcow2
  std::map<std::string, std::string> options;
  bool full = false;  // each holds everything itself; blocks are shared where the file system can
  bool replace = false;  // what stands at a target gives way
  CopyOptions copy;      // of full ones: threads, progress
};

// New images over `base` (or copies of it) at all `targets`, in groups of some dozens: those of a
// group are all made before the first of them appears under its name. On an error the groups before
// stay.
Result<> Clone(const std::string& base, const std::vector<std::string>& targets,
               const CloneOptions& options, const Gate& gate, std::vector<std::string>* warnings);

}  // namespace platter
