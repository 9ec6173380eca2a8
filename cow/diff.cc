#include "cow/diff.h"

#include <algorithm>
#include <array>
#include <utility>

namespace platter {

namespace {

// A layer's extents in `within`, asked for in ascending order.
class Walk {
 public:
  Walk(Layer& layer, Range within) : layer_(layer), within_(within) {}

  // The extent that holds `at`. Valid until the next call.
  Result<const Extent*> Find(uint64_t at) {
    while (next_ < count_ && found_[next_].guest.end() <= at) ++next_;
    if (next_ == count_) {
      Pin pin = layer_.Hold();
      count_ = TRY(layer_.Map(Range::FromTo(at, within_.end()), found_));
      next_ = 0;
    }
    return &found_[next_];
  }

 private:
  Layer& layer_;
  const Range within_;
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

// Joins what comes in ascending order, and hands it on when it is whole.
class Joiner {
 public:
  explicit Joiner(const std::function<bool(Range)>& visit) : visit_(visit) {}

  // False once `visit` wants no more.
  bool Add(Range range) {
    if (joined_.end() == range.offset) {
      joined_.length += range.length;
      return true;
    }
    if (!Finish()) return false;
    joined_ = range;
    return true;
  }
  bool Finish() { return joined_.empty() || visit_(joined_); }

 private:
  const std::function<bool(Range)>& visit_;
  Range joined_;
};

}  // namespace

Result<> VisitChanged(Layer& a, Layer& b, Range within, const std::function<bool(Range)>& visit) {
  const uint64_t shorter = std::min(a.info().size, b.info().size);
  const uint64_t longer = std::max(a.info().size, b.info().size);
  const Range both = within.Intersect({0, shorter});
  Walk in_a(a, both), in_b(b, both);
  Joiner changed(visit);
  for (uint64_t at = both.offset; at < both.end();) {
    const Extent& one = *TRY(in_a.Find(at));
    const Extent& other = *TRY(in_b.Find(at));
    const Range here = Range::FromTo(at, std::min(one.guest.end(), other.guest.end()));
    if (!Same(one, other, at) && !changed.Add(here)) return {};
    at = here.end();
  }
  const Range rest = within.Intersect(Range::FromTo(shorter, longer));
  if (!rest.empty() && !changed.Add(rest)) return {};
  changed.Finish();
  return {};
}

}  // namespace platter
