// WrapperStore: a store that passes everything on to another one that it does not own. A format
// that wants to own its store gets one of these, and the test keeps the bytes; tests that count,
// delay or refuse calls override the few they care about.
#pragma once

#include <string>

#include "io/store.h"

namespace platter {

class WrapperStore : public Store {
 public:
  explicit WrapperStore(Store& base) : base_(base) {}

  Caps caps() const override { return base_.caps(); }
  const std::string& name() const override { return base_.name(); }
  bool writable() const override { return base_.writable(); }
  Result<uint64_t> Size() const override { return base_.Size(); }
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override { return base_.Read(at, into); }
  Result<> Write(uint64_t at, std::span<const iovec> from) override {
    return base_.Write(at, from);
  }
  Result<> Zero(Range range, bool may_unmap) override { return base_.Zero(range, may_unmap); }
  Result<> Sync() override { return base_.Sync(); }
  Result<> Resize(uint64_t size) override { return base_.Resize(size); }
  Result<> Allocate(Range range) override { return base_.Allocate(range); }
  void Expect(Range range) override { base_.Expect(range); }
  Result<Run> FindRun(uint64_t at) override { return base_.FindRun(at); }
  size_t TryRead(uint64_t at, std::span<const iovec> into) override {
    return base_.TryRead(at, into);
  }
  int fd() const override { return base_.fd(); }
  uint64_t fd_offset() const override { return base_.fd_offset(); }

 protected:
  Store& base_;
};

}  // namespace platter
