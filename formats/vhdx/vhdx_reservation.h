// VhdxReservation: what Reserve hands out. Filled in by the layer's planning.
#pragma once

#include <utility>
#include <vector>

#include "formats/vhdx/vhdx_layer.h"

namespace platter::vhdx {

class VhdxReservation final : public Reservation {
 public:
  VhdxReservation(VhdxLayer& layer, RangeLock::Guard guard)
      : layer_(layer), guard_(std::move(guard)) {}
  ~VhdxReservation() override { layer_.space_.GiveBack(fresh_); }

  Range range() const override { return range_; }
  std::span<const Extent> target() const override { return target_; }
  std::span<const Range> fill() const override { return fill_; }
  Result<> Publish() override;

 private:
  friend class VhdxLayer;

  // Nothing is reserved any more; the range stays ours.
  void Reset();
  void AddTarget(const Extent& extent);
  void AddFill(Range range);

  VhdxLayer& layer_;
  const RangeLock::Guard guard_;
  std::vector<TableCache::Ref> slices_;  // that Publish changes; they stay in memory for that
  Range range_;
  std::vector<Extent> target_;
  std::vector<Range> fill_;
  std::vector<VhdxLayer::Update> updates_;
  Range fresh_;  // allocated, to be given back if this is dropped
};

}  // namespace platter::vhdx
