#include "io/testing/flat_layer.h"

#include <array>

namespace platter {

Result<> FlatLayer::CheckRange(Range want) const {
  if (!want.empty() && FitsIn(want.offset, want.length, info_.size)) return {};
  return Fail(Code::kOutOfRange, "flat: {:#x}+{:#x} is not inside a disk of {:#x} bytes",
              want.offset, want.length, info_.size);
}

Extent FlatLayer::InPlace(Range range) const {
  Extent extent;
  extent.guest = extent.host = range;
  extent.kind = Kind::kData;
  extent.store = &store_;
  return extent;
}

Result<size_t> FlatLayer::Map(Range want, std::span<Extent> out) {
  TRY(CheckRange(want));
  size_t count = 0;
  for (uint64_t at = want.offset; at < want.end() && count < out.size(); ++count) {
    Store::Run run = TRY(store_.FindRun(at));
    Extent& extent = out[count] = InPlace(Range{at, run.length}.Intersect(want));
    extent.writable = run.data && info_.writable;
    if (!run.data) extent.kind = Kind::kHole;
    at = extent.guest.end();
  }
  return count;
}

Result<std::unique_ptr<Reservation>> FlatLayer::Reserve(Range want) {
  struct Given final : Reservation {
    Range range() const override { return extent[0].guest; }
    std::span<const Extent> target() const override { return extent; }
    std::span<const Range> fill() const override { return {}; }
    Result<> Publish() override { return {}; }
    std::array<Extent, 1> extent;
  };
  TRY(CheckRange(want));
  if (!info_.writable) return Fail(Code::kReadOnly, "flat: opened for reading");
  auto given = std::make_unique<Given>();
  given->extent[0] = InPlace(want);
  return given;
}

Result<Range> FlatLayer::Discard(Range want, Kind leave) {
  TRY(CheckRange(want));
  TRY(store_.Zero(want, /*may_unmap=*/leave != Kind::kZero));
  return want;
}

}  // namespace platter
