// Commit: what an image holds goes down into one of its parents.
#pragma once

#include <string>
#include <vector>

#include "cow/disk.h"
#include "io/engine/engine.h"

namespace platter {

struct CommitOptions {
  DiskOptions open;   // of the image; its chain is opened as it says
  std::string base;   // into which parent, as FindInChain has it; empty: the image's own
  bool keep = false;  // the image keeps what it holds; it does with a base further down, too
  CopyOptions copy;   // threads, bytes_per_second, progress
};

struct CommitOutcome {
  std::string base;      // the parent's path
  bool emptied = false;  // the image holds nothing any more
};

// Writes what the images from `path` down to above the base hold into the base, which grows where
// it is smaller; then empties the image. The image reads the same all the time, also where a crash
// interrupts the work: what has arrived in the base is still in the image, until all of it is
// durable there. Images between the two, and other children of the base, are worth nothing
// afterwards, unless they record which content of it they mean: then they are refused.
//
// kRefused where there is no parent, an image above the base has internal snapshots, or one is in
// use; kUnsupported where the base cannot be
// written. Warnings may be null.
Result<CommitOutcome> Commit(const std::string& path, const CommitOptions& options,
                             const Gate& gate, std::vector<std::string>* warnings);

// Step 4 and 5 of it, on disks that are open: what `upper` itself holds (its layers, where
// DiskOptions::layers left out the rest; else the top one) goes into `base` and is flushed there;
// with `empty` the top layer drops it then. Alone with `upper` all the time, since a write that
// comes between the copy and the drop would be dropped unseen. Where `upper` has `base` below it,
// both are over the same layer.
Result<> CommitInto(Disk& upper, Layer& base, CopyOptions copy, bool empty);

// Gives back what the top layer itself holds, as far as its units go: what it reads as is then what
// its parents hold. For a layer that reads the same as its parents.
Result<> DropOwn(Layer& layer);

}  // namespace platter
