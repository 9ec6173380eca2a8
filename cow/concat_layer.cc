#include "cow/concat_layer.h"

#include <algorithm>

#include "base/check.h"

namespace platter {

Result<std::unique_ptr<Layer>> ConcatLayer::Join(std::vector<std::unique_ptr<Layer>> parts) {
  CHECK(!parts.empty());
  auto whole = std::make_unique<ConcatLayer>();
  whole->info_.format = "concatenation";
  whole->info_.sector = parts.front()->info().sector;
  for (auto& part : parts) {
    Range guest{whole->info_.size, part->info().size};
    auto end = CheckedAdd(guest.offset, guest.length);
    if (!end || *end > INT64_MAX)
      return Fail(Code::kOutOfRange, "the sources together are over 8 EiB");
    whole->info_.size = *end;
    whole->parts_.push_back({guest, std::move(part)});
  }
  return std::unique_ptr<Layer>(std::move(whole));
}

Result<size_t> ConcatLayer::Map(Range want, std::span<Extent> out) {
  if (want.empty() || !FitsIn(want.offset, want.length, info_.size)) {
    return Fail(Code::kOutOfRange, "bytes {} to {} are outside the sources ({} bytes)", want.offset,
                want.end(), info_.size);
  }
  auto part = std::find_if(parts_.begin(), parts_.end(),
                           [&](const Part& p) { return p.guest.Contains(want.offset); });
  Range inside = want.Intersect(part->guest);
  inside.offset -= part->guest.offset;
  size_t count = TRY(part->layer->Map(inside, out));
  for (Extent& extent : out.first(count)) {
    extent.guest.offset += part->guest.offset;
    extent.writable = false;
  }
  return count;
}

Result<std::unique_ptr<Reservation>> ConcatLayer::Reserve(Range) {
  return Fail(Code::kReadOnly, "several sources in a row are for reading");
}

Result<Range> ConcatLayer::Discard(Range, Kind) {
  return Fail(Code::kReadOnly, "several sources in a row are for reading");
}

}  // namespace platter
