// ExtentList: extents written one after the other into a caller's array, neighbours that continue
// one another merged.
#pragma once

#include <cstdint>
#include <span>

#include "io/layer.h"

namespace platter {

class ExtentList {
 public:
  explicit ExtentList(std::span<Extent> out) : out_(out) {}

  // `extent` follows what is there. False if there is no room for it.
  bool Add(const Extent& extent) {
    if (count_ > 0 && Continues(out_[count_ - 1], extent)) {
      out_[count_ - 1].guest.length += extent.guest.length;
      out_[count_ - 1].host.length += extent.host.length;
      return true;
    }
    if (count_ == out_.size()) return false;
    out_[count_++] = extent;
    return true;
  }

  size_t size() const { return count_; }
  std::span<Extent> extents() const { return out_.first(count_); }

 private:
  static bool Continues(const Extent& a, const Extent& b) {
    return a.kind == b.kind && a.writable == b.writable && a.store == b.store &&
           a.codec == b.codec && !a.packed() && a.guest.end() == b.guest.offset &&
           (a.store == nullptr || a.host.end() == b.host.offset);
  }

  std::span<Extent> out_;
  size_t count_ = 0;
};

}  // namespace platter
