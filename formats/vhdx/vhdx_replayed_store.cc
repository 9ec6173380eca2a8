// ReplayedStore: reads go to the file, and what the log changes is put over them.
#include <algorithm>
#include <cstring>
#include <utility>

#include "formats/vhdx/vhdx_log.h"

namespace platter::vhdx {

ReplayedStore::ReplayedStore(Store& file, LogChanges changes)
    : file_(file),
      changes_(std::move(changes)),
      file_size_(file_.Size().value_or(0)),
      size_(changes_.size()) {}

Store::Caps ReplayedStore::caps() const { return Caps{.preferred = file_.caps().preferred}; }

Result<> ReplayedStore::Read(uint64_t at, std::span<const iovec> into) {
  for (const iovec& part : into) {
    TRY(ReadSpan(at, Bytes(static_cast<std::byte*>(part.iov_base), part.iov_len)));
    at += part.iov_len;
  }
  return {};
}

Result<> ReplayedStore::ReadSpan(uint64_t at, Bytes into) {
  if (!FitsIn(at, into.size(), size_)) {
    return Fail(Code::kCorrupt, "'{}': {} bytes at {:#x} reach past the end of the file ({:#x})",
                name(), into.size(), at, size_);
  }
  // The log may make the file longer than it is.
  size_t there = at >= file_size_ ? 0 : std::min<uint64_t>(into.size(), file_size_ - at);
  if (there > 0) TRY(file_.Read(at, into.first(there)));
  std::memset(into.data() + there, 0, into.size() - there);
  return changes_.Patch(file_, at, into);
}

Result<Store::Run> ReplayedStore::FindRun(uint64_t at) {
  Range changed = changes_.Next(at);
  if (!changed.empty() && changed.Contains(at)) return Run{changed.end() - at, true};
  Run run{size_ - at, false};
  if (at < file_size_) run = TRY(file_.FindRun(at));
  if (!changed.empty()) run.length = std::min(run.length, changed.offset - at);
  return run;
}

}  // namespace platter::vhdx
