// VdiReservation: what Reserve hands out. Filled in by the layer's planning.
#pragma once

#include <utility>
#include <vector>

#include "formats/vdi/vdi_layer.h"

namespace platter::vdi {

class VdiReservation final : public Reservation {
 public:
  VdiReservation(VdiLayer& layer, RangeLock::Guard guard)
      : layer_(layer), guard_(std::move(guard)) {}
  ~VdiReservation() override { GiveBack(); }

  Range range() const override { return range_; }
  std::span<const Extent> target() const override { return target_; }
  std::span<const Range> fill() const override { return fill_; }
  Result<> Publish() override;

  // Nothing is reserved any more; the range stays ours.
  void Reset();

 private:
  friend class VdiLayer;

  void GiveBack() { layer_.allocator_->GiveBack(std::exchange(fresh_, {})); }
  void AddTarget(Range guest, uint64_t host);
  void AddFill(Range range);

  VdiLayer& layer_;
  const RangeLock::Guard guard_;
  TableCache::Ref slice_;  // whose entries Publish changes; it stays in memory for that
  Range range_;
  std::vector<Extent> target_;
  std::vector<Range> fill_;
  std::vector<VdiLayer::Update> updates_;
  Run fresh_;  // allocated, to be given back if this is dropped
};

}  // namespace platter::vdi
