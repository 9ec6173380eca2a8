// WindowLayer: a part of a disk as a disk of its own. Read-only.
#pragma once

#include <memory>

#include "io/layer.h"

namespace platter {

class WindowLayer final : public Layer {
 public:
  // kOutOfRange if `window` is not inside the disk.
  static Result<std::unique_ptr<WindowLayer>> Open(std::unique_ptr<Layer> disk, Range window);

  const Info& info() const override { return info_; }
  Pin Hold() override { return disk_->Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override { return {}; }

 private:
  WindowLayer(std::unique_ptr<Layer> disk, Range window, Info info)
      : disk_(std::move(disk)), window_(window), info_(std::move(info)) {}

  const std::unique_ptr<Layer> disk_;
  const Range window_;
  const Info info_;
};

}  // namespace platter
