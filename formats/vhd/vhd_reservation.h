// VhdReservation: what Reserve hands out. Filled in by the layer's planning.
#pragma once

#include <utility>
#include <vector>

#include "formats/vhd/vhd_layer.h"

namespace platter::vhd {

class VhdReservation final : public Reservation {
 public:
  VhdReservation(VhdLayer& layer, RangeLock::Guard guard)
      : guard_(std::move(guard)), layer_(layer) {}
  ~VhdReservation() override { Reset(); }

  Range range() const override { return range_; }
  std::span<const Extent> target() const override { return target_; }
  std::span<const Range> fill() const override { return fill_; }
  Result<> Publish() override;

  // Nothing is reserved any more; the range stays ours.
  void Reset();

 private:
  friend class VhdLayer;

  // A block that gets a place.
  struct Fresh {
    uint64_t index;
    uint64_t unit;
  };
  // Sectors of one block that will be here: runs of bits.
  struct Bits {
    TableCache::Ref bitmap;
    std::vector<Range> runs;
  };

  // The first member, so that it goes last: space that is given back is free before the next writer
  // of these blocks looks for some.
  const RangeLock::Guard guard_;
  VhdLayer& layer_;
  TableCache::Ref slice_;  // whose entries Publish changes; it stays in memory for that
  Range range_;
  std::vector<Extent> target_;
  std::vector<Range> fill_;
  std::vector<Fresh> fresh_;
  std::vector<Bits> bits_;

  void AddTarget(Store* store, Range guest, uint64_t host);
  void AddFill(Range range);
  // `whole` is written of which `part` are new bytes.
  void Add(Store* store, Range whole, uint64_t host, Range part);
};

}  // namespace platter::vhd
