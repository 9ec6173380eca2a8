#include "io/engine/map_cursor.h"

#include <algorithm>

#include "base/check.h"
#include "io/engine/extent_io.h"

namespace platter {

MapCursor::MapCursor(Layer& layer, Range range, Lost lost)
    : layer_(layer),
      end_(range.end()),
      lost_(std::move(lost)),
      at_(range.offset),
      batch_(kExtents) {}

Result<Extent> MapCursor::Peek() {
  CHECK(!done());
  if (next_ == count_) TRY(Refill());
  const Extent& extent = batch_[next_];
  return ExtentSuffix(extent, at_ - extent.guest.offset);
}

void MapCursor::Advance(uint64_t length) {
  at_ += length;
  CHECK(next_ < count_ && at_ <= batch_[next_].guest.end());
  if (at_ == batch_[next_].guest.end()) ++next_;
}

Result<> MapCursor::Refill() {
  next_ = 0;
  count_ = 1;
  uint64_t size = layer_.info().size;
  if (at_ >= size) {
    batch_[0] = Extent{};
    batch_[0].guest = Range::FromTo(at_, end_);
    pin_ = nullptr;
    return {};
  }
  // Windows end on multiples of their size, so that they cut no unit in two.
  uint64_t end = std::min({end_, size, RoundDown(at_, window_) + window_});
  // The Pin before the Map, as always; whoever works on the batch shares it.
  auto pin = std::make_shared<const Pin>(layer_.Hold());
  auto mapped = layer_.Map(Range::FromTo(at_, end), batch_);
  if (!mapped) return RefillPastError(std::move(mapped.error()));
  CHECK(*mapped > 0);
  count_ = *mapped;
  pin_ = std::move(pin);
  window_ = std::min(kWindow, window_ * 4);
  return {};
}

// A table cannot be read. Narrows the window until what can be mapped before the damage has been,
// then steps over it a unit at a time.
Result<> MapCursor::RefillPastError(Error error) {
  if (!lost_) return std::unexpected(std::move(error));
  constexpr uint64_t kSmallest = 64 * kKiB;
  if (window_ > kSmallest) {
    window_ = std::max(kSmallest, window_ / 64);
    return Refill();
  }
  Extent& hole = batch_[0];
  hole = Extent{};
  hole.guest =
      Range::FromTo(at_, std::min({end_, layer_.info().size, RoundDown(at_, window_) + window_}));
  pin_ = nullptr;
  lost_(hole.guest, error);
  return {};
}

}  // namespace platter
