#include "formats/raw/head_guard.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "io/iov.h"

namespace platter {

namespace {

// The bytes in which Probe looks for signatures.
struct Ends {
  std::array<std::byte, HeadGuard::kHead> head_bytes{};
  std::array<std::byte, HeadGuard::kTail> tail_bytes{};
  uint64_t size;

  explicit Ends(uint64_t store_size) : size(store_size) {}

  Bytes head() { return Bytes(head_bytes).first(std::min(size, HeadGuard::kHead)); }
  Bytes tail() { return Bytes(tail_bytes).first(std::min(size, HeadGuard::kTail)); }
  std::string_view SignatureName() { return platter::SignatureName(head(), tail(), size); }

  // change(skip, bytes) for each part of `range`: `skip` bytes into it.
  template <class Change>
  void Apply(Range range, Change change) {
    for (auto [at, bytes] :
         {std::pair(uint64_t{0}, head()), std::pair(size - tail().size(), tail())}) {
      Range common = Range{at, bytes.size()}.Intersect(range);
      if (common.empty()) continue;
      change(common.offset - range.offset, bytes.subspan(common.offset - at, common.length));
    }
  }
};

}  // namespace

bool HeadGuard::Covers(Range range, uint64_t size) {
  return range.offset < kHead || range.end() > size - std::min(size, kTail);
}

uint64_t HeadGuard::NextBorder(uint64_t at, uint64_t size) {
  if (at < kHead) return std::min(kHead, size);
  uint64_t tail = size - std::min(size, kTail);
  return at < tail ? tail : size;
}

template <class Change>
Result<> HeadGuard::CheckChange(Range range, Change change) {
  uint64_t size = TRY(store_.Size());
  Ends ends(size);
  TRY(store_.Read(0, ends.head()));
  TRY(store_.Read(size - ends.tail().size(), ends.tail()));
  std::string_view before = ends.SignatureName();
  ends.Apply(range, change);
  std::string_view after = ends.SignatureName();
  if (after.empty() || after == before) return {};
  return Fail(Code::kRefused,
              "'{}': a write to bytes {} to {} would make this image look like {}, and that it is "
              "raw was a guess; if it is, say so with -f raw",
              store_.name(), range.offset, range.end(), after);
}

Result<> HeadGuard::Write(uint64_t at, std::span<const iovec> from) {
  std::lock_guard lock(mutex_);
  TRY(CheckChange({at, IovLength(from)},
                  [&](uint64_t skip, Bytes into) { IovGather(from, skip, into); }));
  return store_.Write(at, from);
}

Result<> HeadGuard::Resize(uint64_t size) {
  std::lock_guard lock(mutex_);
  const uint64_t old = TRY(store_.Size());
  auto signature = [&](uint64_t at_size) -> Result<std::string_view> {
    Ends ends(at_size);
    // What is new reads as zeros.
    auto read = [&](uint64_t at, Bytes bytes) {
      const uint64_t there = std::min<uint64_t>(bytes.size(), old - std::min(old, at));
      return there == 0 ? Result<>() : store_.Read(at, bytes.first(there));
    };
    TRY(read(0, ends.head()));
    TRY(read(at_size - ends.tail().size(), ends.tail()));
    return ends.SignatureName();
  };
  const std::string_view before = TRY(signature(old)), after = TRY(signature(size));
  if (after.empty() || after == before) return store_.Resize(size);
  return Fail(Code::kRefused,
              "'{}': with {} bytes this image would look like {}, and that it is raw was a guess; "
              "if it is, say so with -f raw",
              store_.name(), size, after);
}

Result<> HeadGuard::Zero(Range range, bool may_unmap) {
  std::lock_guard lock(mutex_);
  TRY(CheckChange(range, [](uint64_t, Bytes into) { std::ranges::fill(into, std::byte{0}); }));
  return store_.Zero(range, may_unmap);
}

}  // namespace platter
