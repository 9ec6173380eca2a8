// What a repair would do, and taking it back: check --dry-run, --undo, --apply-undo.
#pragma once

#include <string>
#include <vector>

#include "formats/format.h"
#include "tools/console.h"

namespace platter {

struct RepairPlan {
  CheckReport report;                         // as after the repair
  std::vector<Range> written;                 // bytes of the image's own file that change
  uint64_t size_before = 0, size_after = 0;   // bytes, of that file
  uint64_t cut_at = 0;                        // what it held from here on goes
  bool other_files = false;                   // the image names more, which may change as well

  uint64_t bytes() const;
  bool empty() const { return written.empty() && size_before == size_after; }
};

// Repairs a shadow of the image. `store` and the files that `opener` opens are only read.
Result<RepairPlan> PlanRepair(const Format& format, Store& store, Opener* opener,
                              CheckOptions::Repair repair);

// Writes to `path`, which must not be there, what `plan` is going to change in `image`; durable on
// return. kUnsupported where the plan is not of one file alone.
Result<> WriteUndo(const std::string& path, Store& image, const RepairPlan& plan);
// After the repair: adds what the image holds now, so that it can be told from one that was
// changed since.
Result<> CompleteUndo(const std::string& path, Store& image);

// Makes `image` what it was before the repair. kRefused if it was changed since, kCorrupt for a
// file that is no such thing. An interruption does no harm: apply it again.
Result<> ApplyUndo(const std::string& path, Store& image);

}  // namespace platter
