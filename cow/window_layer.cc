#include "cow/window_layer.h"

#include <utility>

namespace platter {

Result<std::unique_ptr<WindowLayer>> WindowLayer::Open(std::unique_ptr<Layer> disk, Range window) {
  const Info& whole = disk->info();
  if (!FitsIn(window.offset, window.length, whole.size)) {
    return Fail(Code::kOutOfRange, "{} bytes at {} are outside the disk of {} bytes", window.length,
                window.offset, whole.size);
  }
  Info info;
  info.format = whole.format;
  info.size = window.length;
  info.sector = whole.sector;
  // Units only count where they are those of the window as well.
  if (whole.unit != 0 && IsAligned(window.offset, whole.unit)) info.unit = whole.unit;
  return std::unique_ptr<WindowLayer>(new WindowLayer(std::move(disk), window, std::move(info)));
}

Result<size_t> WindowLayer::Map(Range want, std::span<Extent> out) {
  if (want.empty() || !FitsIn(want.offset, want.length, info_.size)) {
    return Fail(Code::kOutOfRange, "{} bytes at {} are outside the part of {} bytes", want.length,
                want.offset, info_.size);
  }
  const size_t count = TRY(disk_->Map({want.offset + window_.offset, want.length}, out));
  for (Extent& extent : out.first(count)) {
    extent.guest.offset -= window_.offset;
    extent.writable = false;
  }
  return count;
}

Result<std::unique_ptr<Reservation>> WindowLayer::Reserve(Range) {
  return Fail(Code::kReadOnly, "a part of a disk is for reading");
}

Result<Range> WindowLayer::Discard(Range, Kind) {
  return Fail(Code::kReadOnly, "a part of a disk is for reading");
}

}  // namespace platter
