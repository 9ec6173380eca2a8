// FlatLayer: guest bytes are host bytes, as in a raw file: nothing is allocated, everything is
// written in place. The other end of the contract from ToyLayer.
#pragma once

#include <memory>
#include <span>

#include "io/layer.h"
#include "io/store.h"

namespace platter {

class FlatLayer : public Layer {
 public:
  // The disk is as long as the store is now.
  explicit FlatLayer(Store& store) : store_(store) {
    info_.format = "flat";
    info_.size = store.Size().value_or(0);
    info_.writable = store.writable();
  }

  const Info& info() const override { return info_; }
  Pin Hold() override { return {}; }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override { return store_.Sync(); }

 private:
  Result<> CheckRange(Range want) const;
  Extent InPlace(Range range) const;

  Store& store_;
  Info info_;
};

}  // namespace platter
