// Qcow2Reservation: what Reserve and ReservePacked hand out. Filled in by the layer's planning.
#pragma once

#include <utility>
#include <vector>

#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {

class Qcow2Reservation final : public Reservation {
 public:
  Qcow2Reservation(Qcow2Layer& layer, RangeLock::Guard guard)
      : layer_(layer), guard_(std::move(guard)) {}
  ~Qcow2Reservation() override { GiveBack(); }

  Range range() const override { return range_; }
  std::span<const Extent> target() const override { return target_; }
  std::span<const Range> fill() const override { return fill_; }
  Result<> Publish() override;

  // Nothing is reserved any more; the range stays ours.
  void Reset();

 private:
  friend class Qcow2Layer;

  void GiveBack();
  void AddTarget(const Extent& extent);
  void AddFill(Range range);

  Qcow2Layer& layer_;
  const RangeLock::Guard guard_;
  TableCache::Ref slice_;  // whose entries Publish changes; it stays in memory for that
  Range range_;
  std::vector<Extent> target_;
  std::vector<Range> fill_;
  std::vector<Qcow2Layer::Update> updates_;
  std::vector<Range> old_;     // host bytes that the old entries counted on
  Clusters fresh_;             // allocated, to be given back if this is dropped
  std::vector<Range> packed_;  // the same for packed units, in bytes
};

}  // namespace platter::qcow2
