#include "cow/dirty_view.h"

#include <algorithm>
#include <utility>

namespace platter {

Result<std::unique_ptr<DirtyView>> DirtyView::Make(Layer& disk, const std::string& bitmap,
                                                   uint64_t unit) {
  Bitmapper* bitmaps = disk.bitmapper();
  if (!bitmaps) {
    return Fail(Code::kUnsupported, "{} images hold no bitmaps", disk.info().format);
  }
  auto view = std::unique_ptr<DirtyView>(new DirtyView(disk, unit));
  TRY(bitmaps->VisitDirty(bitmap, {0, disk.info().size}, [&](Range dirty) {
    const Range whole = dirty.Outward(unit);
    view->dirty_.Add({whole.offset / unit, whole.length / unit});
    return true;
  }));
  return view;
}

std::unique_ptr<DirtyView> DirtyView::Of(Layer& disk, UnitSet own, uint64_t unit) {
  auto view = std::unique_ptr<DirtyView>(new DirtyView(disk, unit));
  view->dirty_ = std::move(own);
  return view;
}

Result<size_t> DirtyView::Map(Range want, std::span<Extent> out) {
  const uint64_t unit = want.offset / unit_;
  const Range next = dirty_.Next(unit);
  const uint64_t begin = next.empty() ? want.end() : std::max(next.offset * unit_, want.offset);
  if (begin > want.offset) {
    out[0] = {.guest = Range::FromTo(want.offset, std::min(begin, want.end())),
              .kind = Kind::kParent,
              .depth = 1};
    return 1;
  }
  want.length = std::min(want.end(), next.end() * unit_) - want.offset;
  const size_t count = TRY(disk_.Map(want, out));
  for (Extent& extent : out.first(count)) {
    extent.depth = 0;
    extent.writable = false;
  }
  return count;
}

Result<std::unique_ptr<Reservation>> DirtyView::Reserve(Range) {
  return Fail(Code::kReadOnly, "a view of what is dirty");
}

Result<Range> DirtyView::Discard(Range, Kind) {
  return Fail(Code::kReadOnly, "a view of what is dirty");
}

}  // namespace platter
