#include "io/window_store.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "io/iov.h"

namespace platter {

Result<std::unique_ptr<WindowStore>> WindowStore::Open(std::shared_ptr<Store> inner, Range window) {
  uint64_t size = TRY(inner->Size());
  if (!FitsIn(window.offset, window.length, size)) {
    return Fail(Code::kOutOfRange, "'{}': a window of {} bytes at {} is not inside its {} bytes",
                inner->name(), window.length, window.offset, size);
  }
  return std::unique_ptr<WindowStore>(new WindowStore(std::move(inner), window));
}

Store::Caps WindowStore::caps() const {
  Caps caps = inner_->caps();
  // Requests are shifted by the window's offset, and that may be off the alignment.
  if (!IsAligned(window_.offset, std::max<uint32_t>(caps.align, 1))) caps.align = 1;
  caps.block_device = true;  // as for one: the size is fixed, the contents were there before
  return caps;
}

Result<> WindowStore::Read(uint64_t at, std::span<const iovec> into) {
  const uint64_t length = IovLength(into);
  if (!FitsIn(at, length, window_.length)) {
    return Fail(Code::kCorrupt,
                "'{}': {} bytes at {:#x} reach past the end of the window (size {:#x})", name(),
                length, at, window_.length);
  }
  return inner_->Read(window_.offset + at, into);
}

Result<> WindowStore::CheckRoom(Range range) const {
  if (FitsIn(range.offset, range.length, window_.length)) return {};
  return Fail(Code::kNoSpace,
              "'{}': {} bytes at {:#x} reach past the end of the window (size {:#x})", name(),
              range.length, range.offset, window_.length);
}

Result<> WindowStore::Write(uint64_t at, std::span<const iovec> from) {
  TRY(CheckRoom(Range{at, IovLength(from)}));
  return inner_->Write(window_.offset + at, from);
}

Result<> WindowStore::Zero(Range range, bool may_unmap) {
  TRY(CheckRoom(range));
  return inner_->Zero(Range{window_.offset + range.offset, range.length}, may_unmap);
}

Result<> WindowStore::Resize(uint64_t size) {
  if (size == window_.length) return {};
  return Fail(Code::kUnsupported, "'{}': the size of a window is fixed ({} bytes)", name(),
              window_.length);
}

Result<> WindowStore::Allocate(Range range) {
  TRY(CheckRoom(range));
  return inner_->Allocate(Range{window_.offset + range.offset, range.length});
}

Result<Store::Run> WindowStore::FindRun(uint64_t at) {
  if (at >= window_.length) {
    return Fail(Code::kOutOfRange, "'{}': {:#x} is past the end of the window (size {:#x})", name(),
                at, window_.length);
  }
  Run run = TRY(inner_->FindRun(window_.offset + at));
  run.length = std::min(run.length, window_.length - at);
  return run;
}

size_t WindowStore::TryRead(uint64_t at, std::span<const iovec> into) {
  const uint64_t length = IovLength(into);
  if (FitsIn(at, length, window_.length)) return inner_->TryRead(window_.offset + at, into);
  if (at >= window_.length) return 0;
  std::vector<iovec> part;
  IovSlice(into, 0, window_.length - at, part);
  return inner_->TryRead(window_.offset + at, part);
}

}  // namespace platter
