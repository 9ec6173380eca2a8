// Several disks in a row as one, for reading: `convert a b c out`.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "io/codec/cipher.h"
#include "io/layer.h"

namespace platter {

// Guest bytes of parts[0], then parts[1], ... Read-only. At least one part;
// together below 2^63. Map is kUnsupported for sectors whose cipher goes by guest offset in a part
// that does not begin on a sector's border.
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
  Result<const Cipher*> CipherFor(const Part& part, const Cipher& cipher);

  std::vector<Part> parts_;
  Info info_;
  Mutex mutex_;  // guards shifted_; a leaf
  // By the cipher of a part, and where the part begins.
  std::map<std::pair<const Cipher*, uint64_t>, std::unique_ptr<const Cipher>> shifted_;
};

}  // namespace platter
