// HeadGuard: keeps a raw image that nobody called raw from turning into something else.
//
// The content of a raw image is the guest's to write. If its format is found out by looking at the
// content, a guest that writes, say, a qcow2 header with a parent of its choice into its first
// sector has the host open that file at the next start. So where raw was a guess, writes and new
// sizes that would leave a known signature where Probe looks (the first 4096 and the last 512
// bytes) are refused. Naming the format (-f raw) lifts that, and is what every script should do.
#pragma once

#include <memory>

#include "base/sync.h"
#include "formats/format.h"
#include "io/store.h"

namespace platter {

class HeadGuard final : public Store {
 public:
  static constexpr uint64_t kHead = 4096, kTail = 512;  // bytes

  // Borrows `store`, whose content is taken for raw by guess.
  explicit HeadGuard(Store& store) : store_(store) {}

  // True if writes to some of `range` of a store of `size` bytes have to come through a guard.
  static bool Covers(Range range, uint64_t size);
  // The first byte at or after `at` where that changes; `size` at the latest.
  static uint64_t NextBorder(uint64_t at, uint64_t size);

  Caps caps() const override { return store_.caps(); }
  const std::string& name() const override { return store_.name(); }
  bool writable() const override { return store_.writable(); }
  Result<uint64_t> Size() const override { return store_.Size(); }
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override { return store_.Read(at, into); }
  Result<> Write(uint64_t at, std::span<const iovec> from) override;
  Result<> Zero(Range range, bool may_unmap) override;
  Result<> Sync() override { return store_.Sync(); }
  // Refuses a size at which other bytes are the last ones, and a signature.
  Result<> Resize(uint64_t size) override;
  Result<> Allocate(Range range) override { return store_.Allocate(range); }
  Result<Run> FindRun(uint64_t at) override { return store_.FindRun(at); }
  size_t TryRead(uint64_t at, std::span<const iovec> into) override {
    return store_.TryRead(at, into);
  }
  // No fd(): a copy that goes past Write would go past the guard.

 private:
  // kRefused if changing `range` would leave a signature. change(skip, bytes) makes, on a copy,
  // `bytes` what the part of the range that starts `skip` bytes in is going to be.
  template <class Change>
  Result<> CheckChange(Range range, Change change);

  Store& store_;
  // One guarded write at a time, from the look at the old bytes to the write, so that two halves
  // of a signature cannot pass side by side. Held across I/O: writes to these few sectors are rare.
  Mutex mutex_;
};

}  // namespace platter
