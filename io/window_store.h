// WindowStore: a part of another store as a store of its own: a partition, a raw image's
// offset= and size=.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "io/store.h"

namespace platter {

class WindowStore final : public Store {
 public:
  // Keeps `inner`, which others may use too, and shows `window` of it, or fails with kOutOfRange
  // where that is not inside.
  static Result<std::unique_ptr<WindowStore>> Open(std::shared_ptr<Store> inner, Range window);

  Caps caps() const override;
  const std::string& name() const override { return inner_->name(); }
  bool writable() const override { return inner_->writable(); }
  Result<uint64_t> Size() const override { return window_.length; }
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override;
  // kNoSpace past the end of the window.
  Result<> Write(uint64_t at, std::span<const iovec> from) override;
  Result<> Zero(Range range, bool may_unmap) override;
  Result<> Sync() override { return inner_->Sync(); }
  // Only to the size it has.
  Result<> Resize(uint64_t size) override;
  Result<> Allocate(Range range) override;
  Result<Run> FindRun(uint64_t at) override;
  size_t TryRead(uint64_t at, std::span<const iovec> into) override;
  int fd() const override { return inner_->fd(); }
  uint64_t fd_offset() const override { return inner_->fd_offset() + window_.offset; }

 private:
  WindowStore(std::shared_ptr<Store> inner, Range window)
      : inner_(std::move(inner)), window_(window) {}
  Result<> CheckRoom(Range range) const;

  const std::shared_ptr<Store> inner_;
  const Range window_;
};

}  // namespace platter
