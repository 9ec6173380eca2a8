// DirtyView: a disk of which only some units, what a bitmap calls dirty, are its own. Everything
// else it leaves to a parent (depth 1), so that a copy without what comes from the parent
// (CopyOptions:: skip_parent) is an incremental backup.
#pragma once

#include <memory>
#include <string>

#include "formats/unit_set.h"
#include "io/bitmapper.h"
#include "io/layer.h"

namespace platter {

// For reading; Map from any thread, as the contract has it.
class DirtyView final : public Layer {
 public:
  // What is dirty now, widened to units of `unit` bytes: what the copy is going to allocate anyway.
  // `disk` outlives the view. Errors as Bitmapper::VisitDirty's; kUnsupported where the format has
  // no bitmaps.
  static Result<std::unique_ptr<DirtyView>> Make(Layer& disk, const std::string& bitmap,
                                                 uint64_t unit);

  // The units (numbers) of `own`, of `unit` bytes each.
  static std::unique_ptr<DirtyView> Of(Layer& disk, UnitSet own, uint64_t unit);

  const Info& info() const override { return disk_.info(); }
  Pin Hold() override { return disk_.Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override { return {}; }

 private:
  DirtyView(Layer& disk, uint64_t unit) : disk_(disk), unit_(unit) {}

  Layer& disk_;
  const uint64_t unit_;
  UnitSet dirty_;
};

}  // namespace platter
