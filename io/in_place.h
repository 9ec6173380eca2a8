// InPlace: a Reservation of bytes that have their place already. What was there is overwritten
// while the new bytes move, so there is nothing to publish, and nothing to give back either.
#pragma once

#include <utility>
#include <vector>

#include "io/layer.h"

namespace platter {

class InPlace final : public Reservation {
 public:
  // `target`: plain extents, ascending and contiguous, at least one.
  explicit InPlace(std::vector<Extent> target) : target_(std::move(target)) {}

  Range range() const override {
    return Range::FromTo(target_.front().guest.offset, target_.back().guest.end());
  }
  std::span<const Extent> target() const override { return target_; }
  std::span<const Range> fill() const override { return {}; }
  Result<> Publish() override { return {}; }

 private:
  const std::vector<Extent> target_;
};

}  // namespace platter
