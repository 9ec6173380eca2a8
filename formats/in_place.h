// What can be done to an image that is there, beside writing its disk: changing what it is, and
// making its file smaller. Formats that can offer it here.
#pragma once

#include <map>
#include <span>
#include <string>

#include "formats/format.h"

namespace platter {

struct AmendOptions {
  std::map<std::string, std::string> options;  // -o name=value; an unknown name is kUnsupported
  const Secret* new_secret = nullptr;          // for a key slot that is added
  const Secret* old_secret = nullptr;          // whose key slots are erased
};

// What compacting did, in bytes of the image's file.
struct CompactReport {
  uint64_t size_before = 0, size_after = 0, moved = 0;
};

// Nobody else uses the image meanwhile.
struct InPlace {
  std::span<const OptionHelp> amend_options;  // as printed by `-o help`
  // Changes what the image is, not what it holds. Crash-safe: the image of before or of after.
  Result<> (*amend)(Store& store, const OpenOptions& open, const AmendOptions& options);

  // Moves what lies at the end of the file into holes before it, and cuts the file. A crash leaves
  // leaks at most.
  Result<CompactReport> (*compact)(Store& store, const OpenOptions& open);
};

}  // namespace platter
