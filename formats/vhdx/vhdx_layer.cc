#include "formats/vhdx/vhdx_layer.h"

#include <utility>

#include "formats/vhdx/vhdx_slices.h"

namespace platter::vhdx {

VhdxLayer::VhdxLayer(std::unique_ptr<Store> file, Image image, Info info, uint64_t file_size)
    : file_(std::move(file)),
      image_(std::move(image)),
      info_(std::move(info)),
      name_(fmt::format("vhdx '{}'", file_->name())),
      file_size_(file_size),
      tables_(*file_, "BAT or sector bitmap", kSliceBytes, kCacheBytes) {}

Result<std::unique_ptr<Reservation>> VhdxLayer::Reserve(Range) {
  return Fail(Code::kReadOnly, "{}: opened for reading", name_);
}
Result<Range> VhdxLayer::Discard(Range, Kind) {
  return Fail(Code::kReadOnly, "{}: opened for reading", name_);
}
Result<> VhdxLayer::Flush() { return {}; }

}  // namespace platter::vhdx
