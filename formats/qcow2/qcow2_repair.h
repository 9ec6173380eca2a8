// Mends what a check has found, as far as that can be done without deciding what data is worth: the
// refcounts, the "copied" flags, the refcount structures themselves. An entry that names no place
// in the file, or two structures in one cluster, stay as they are; what they may still refer to is
// kept from being reused.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "formats/qcow2/qcow2_check_survey.h"

namespace platter::qcow2::check {

// Which remedies were applied, by Remedy.
struct Repaired {
  bool raised = false, lowered = false, flags = false, rebuilt = false;

  bool Any() const { return raised || lowered || flags || rebuilt; }
  void Merge(const Repaired& other) {
    raised |= other.raised, lowered |= other.lowered;
    flags |= other.flags, rebuilt |= other.rebuilt;
  }
  bool Applied(Remedy remedy) const {
    switch (remedy) {
      case Remedy::kNone: return false;
      case Remedy::kRaise: return raised;
      case Remedy::kLower: return lowered;
      case Remedy::kFlag: return flags;
      case Remedy::kRebuild: return rebuilt;
    }
    return false;
  }
};

// `survey` has been compared; `image_end` is what CompareRefcounts returned. Crash-safe: after a
// power cut at any point no cluster in use has become free that was not free before. The survey
// says nothing about the image any more afterwards.
Result<Repaired> Repair(const Image& image, const Survey& survey, CheckOptions::Repair mode,
                        uint64_t image_end);

// Clears `bits` of the header's incompatible features; a no-op where none of them is set.
Result<> ClearIncompatible(const Image& image, uint64_t bits);

}  // namespace platter::qcow2::check
