// Rebase: an image gets another parent, or none.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cow/disk.h"
#include "io/engine/engine.h"

namespace platter {

struct RebaseOptions {
  DiskOptions open;                 // of the image; its chain is opened as it says
  std::optional<Reference> parent;  // as it is to be recorded; nothing: none
  // Only the record changes: the image reads differently unless the new parent holds what the old
  // one did. The old parents are not opened.
  bool unsafe = false;
  unsigned threads = 0;          // 0: one for each processor
  Progress* progress = nullptr;  // bytes of the disk
};

// Makes the image at `path` read the same over the new parent as over the old one: what the two
// hold differently, and the image itself does not, is copied into the image; then it records the
// new parent. Crash-safe: until then it reads the same over the old one. Memory: some MiB a thread.
//
// kRefused where the image has internal snapshots, which would not read the same, or is in use, or
// is among the new parents; kUnsupported where the format cannot record the parent.
Result<> Rebase(const std::string& path, const RebaseOptions& options, const Gate& gate,
                std::vector<std::string>* warnings);

// Rebases the image onto a parent further down its chain, `base` as FindInChain has it, or onto
// nothing where it is empty: what the parents in between hold is pulled into the image.
// options.parent and options.unsafe are not looked at.
Result<> Stream(const std::string& path, const std::string& base, RebaseOptions options,
                const Gate& gate, std::vector<std::string>* warnings);

}  // namespace platter
