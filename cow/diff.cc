#include "cow/diff.h"

#include <algorithm>
#include <array>
#include <utility>

namespace platter {

namespace {

// A layer's extents, asked for in ascending order.
class Walk {
 public:
  explicit Walk(Layer& layer) : layer_(layer) {}

  // The extent that holds `at`. Valid until the next call.
  Result<const Extent*> Find(uint64_t at) {
    while (next_ < count_ && found_[next_].guest.end() <= at) ++next_;
    if (next_ == count_) {
      Pin pin = layer_.Hold();
      count_ = TRY(layer_.Map(Range::FromTo(at, layer_.info().size), found_));
      next_ = 0;
    }
    return &found_[next_];
  }

 private:
  Layer& layer_;
  std::array<Extent, 256> found_;
  size_t count_ = 0, next_ = 0;
};

// Where the bytes are, or that there are none. Both extents hold `at`.
bool Same(const Extent& a, const Extent& b, uint64_t at) {
  auto is_zero = [](const Extent& extent) {
    return extent.kind == Kind::kZero || extent.kind == Kind::kHole;
  };
  if (is_zero(a) || is_zero(b)) return is_zero(a) && is_zero(b);
  if (a.kind != b.kind || a.kind == Kind::kParent) return a.kind == b.kind;
  if (a.codec.id != b.codec.id) return false;
  // Packed: the unit's first byte, else the byte itself.
  auto place = [&](const Extent& extent) {
    const uint64_t from_start = at - extent.guest.offset;
    return extent.packed() ? std::pair(extent.host.offset, extent.codec.skip + from_start)
                           : std::pair(extent.host.offset + from_start, uint64_t{0});
  };
  return place(a) == place(b);
}

}  // namespace

Result<> VisitChanged(Layer& a, Layer& b, const std::function<void(Range)>& visit) {
  const uint64_t shorter = std::min(a.info().size, b.info().size);
  const uint64_t longer = std::max(a.info().size, b.info().size);
  Walk in_a(a), in_b(b);
  Range changed{0, 0};
  for (uint64_t at = 0; at < shorter;) {
    const Extent& one = *TRY(in_a.Find(at));
    const Extent& other = *TRY(in_b.Find(at));
    const Range here = Range::FromTo(at, std::min({one.guest.end(), other.guest.end(), shorter}));
    if (!Same(one, other, at)) {
      if (changed.end() != here.offset) {
        if (!changed.empty()) visit(changed);
        changed = {here.offset, 0};
      }
      changed.length += here.length;
    }
    at = here.end();
  }
  if (longer > shorter) {
    if (changed.end() != shorter) {
      if (!changed.empty()) visit(changed);
      changed = {shorter, 0};
    }
    changed.length += longer - shorter;
  }
  if (!changed.empty()) visit(changed);
  return {};
}

}  // namespace platter
