// Several disks in a row as one, for reading: `convert a b c out`.
#pragma once

#include <memory>
#include <vector>

#include "io/layer.h"

namespace platter {

// Guest bytes of parts[0], then parts[1], ... Read-only. At least one part;
// together below 2^63.
class ConcatLayer : public Layer {
 public:
  static Result<std::unique_ptr<Layer>> Join(std::vector<std::unique_ptr<Layer>> parts);

  const Info& info() const override { return info_; }
  // Parts are read-only: they free nothing, so there is nothing to pin.
  Pin Hold() override { return {}; }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range) override;
  Result<Range> Discard(Range, Kind) override;
  Result<> Flush() override { return {}; }

 private:
  struct Part {
    Range guest;  // where it lies in the whole
    std::unique_ptr<Layer> layer;
  };
  std::vector<Part> parts_;
  Info info_;
};

}  // namespace platter
