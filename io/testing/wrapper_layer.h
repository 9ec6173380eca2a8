// WrapperLayer: a layer that passes everything on to another one that it does not own; tests that
// count, delay or refuse calls override the few they care about.
#pragma once

#include <memory>

#include "io/layer.h"

namespace platter {

class WrapperLayer : public Layer {
 public:
  explicit WrapperLayer(Layer& base) : base_(base) {}

  const Info& info() const override { return base_.info(); }
  Pin Hold() override { return base_.Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override { return base_.Map(want, out); }
  size_t TryMap(Range want, std::span<Extent> out) override { return base_.TryMap(want, out); }
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override { return base_.Reserve(want); }
  Result<std::unique_ptr<Reservation>> ReservePacked(Range units,
                                                     std::span<const uint32_t> sizes) override {
    return base_.ReservePacked(units, sizes);
  }
  Result<Range> Discard(Range want, Kind leave) override { return base_.Discard(want, leave); }
  Result<> Flush() override { return base_.Flush(); }
  Resizer* resizer() override { return base_.resizer(); }

 protected:
  Layer& base_;
};

}  // namespace platter
