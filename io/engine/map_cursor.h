// MapCursor: walks the extents of a layer in guest order. Inside the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/range.h"
#include "base/result.h"
#include "io/layer.h"

namespace platter {

// Asks for many extents at once, so that a long walk costs few Map calls, but never for more than
// kWindow guest bytes, so that the first answer for a large image comes soon. One thread.
class MapCursor {
 public:
  // Called for ranges that cannot be mapped; they are then walked over as holes.
  using Lost = std::function<void(Range, const Error&)>;

  // `range` may reach past the end of the layer: holes. Without `lost` an unmappable range is an
  // error of Peek.
  MapCursor(Layer& layer, Range range, Lost lost = nullptr);

  uint64_t at() const { return at_; }
  bool done() const { return at_ == end_; }

  // The extent that starts at at(); not when done().
  Result<Extent> Peek();
  // Moves on, inside the extent last peeked at or to its end.
  void Advance(uint64_t length);

  // Keeps the host bytes of the extent last peeked at from being reused.
  const std::shared_ptr<const Pin>& pin() const { return pin_; }

 private:
  static constexpr uint64_t kWindow = kGiB;
  static constexpr size_t kExtents = 128;

  Result<> Refill();
  Result<> RefillPastError(Error error);

  Layer& layer_;
  const uint64_t end_;
  const Lost lost_;
  uint64_t at_;
  uint64_t window_ = kWindow;
  std::vector<Extent> batch_;
  size_t count_ = 0, next_ = 0;  // of batch_: how many there are, the one that holds at_
  std::shared_ptr<const Pin> pin_;
};

}  // namespace platter
