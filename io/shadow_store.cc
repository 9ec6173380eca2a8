#include "io/shadow_store.h"

#include <algorithm>
#include <cstring>
#include <mutex>

namespace platter {

Result<std::unique_ptr<ShadowStore>> ShadowStore::Over(Store& base, uint64_t most) {
  return std::unique_ptr<ShadowStore>(new ShadowStore(base, TRY(base.Size()), most));
}

Store::Caps ShadowStore::caps() const {
  Caps caps = base_.caps();
  caps.reflink = false;
  return caps;
}

Result<uint64_t> ShadowStore::Size() const {
  std::lock_guard lock(mutex_);
  return size_;
}

uint64_t ShadowStore::cut_at() const {
  std::lock_guard lock(mutex_);
  return base_end_;
}

// Zeros where the base no longer shows.
Result<> ShadowStore::ReadBase(uint64_t at, Bytes into) const {
  const uint64_t there = std::min<uint64_t>(into.size(), base_end_ - std::min(base_end_, at));
  if (there > 0) TRY(base_.Read(at, into.first(there)));
  std::ranges::fill(into.subspan(there), std::byte{0});
  return {};
}

Result<std::vector<std::byte>*> ShadowStore::PageLocked(uint64_t index) {
  auto found = pages_.find(index);
  if (found != pages_.end()) {
    found->second.resize(kPage);
    return &found->second;
  }
  if ((pages_.size() + 1) * kPage > most_) {
    return Fail(Code::kNoSpace, "'{}': more than {} bytes would be written", base_.name(), most_);
  }
  std::vector<std::byte> page(kPage);
  TRY(ReadBase(index * kPage, page));
  return &pages_.emplace(index, std::move(page)).first->second;
}

Result<> ShadowStore::Read(uint64_t at, std::span<const iovec> into) {
  std::lock_guard lock(mutex_);
  for (const iovec& part : into) {
    Bytes bytes(static_cast<std::byte*>(part.iov_base), part.iov_len);
    if (!FitsIn(at, bytes.size(), size_)) {
      return Fail(Code::kCorrupt, "'{}': {} bytes at {:#x} reach past the end ({:#x})",
                  base_.name(), bytes.size(), at, size_);
    }
    while (!bytes.empty()) {
      auto page = pages_.lower_bound(at / kPage);
      const bool here = page != pages_.end() && page->first == at / kPage;
      const uint64_t end = here                   ? (at / kPage + 1) * kPage
                           : page == pages_.end() ? at + bytes.size()
                                                  : page->first * kPage;
      Bytes run = bytes.first(std::min<uint64_t>(bytes.size(), end - at));
      if (here && page->second.empty()) {
        std::ranges::fill(run, std::byte{0});
      } else if (here) {
        std::memcpy(run.data(), page->second.data() + at % kPage, run.size());
      } else {
        TRY(ReadBase(at, run));
      }
      at += run.size();
      bytes = bytes.subspan(run.size());
    }
  }
  return {};
}

Result<> ShadowStore::PutLocked(uint64_t at, ConstBytes from) {
  while (!from.empty()) {
    std::vector<std::byte>& page = *TRY(PageLocked(at / kPage));
    ConstBytes run = from.first(std::min<uint64_t>(from.size(), kPage - at % kPage));
    std::memcpy(page.data() + at % kPage, run.data(), run.size());
    at += run.size();
    from = from.subspan(run.size());
    size_ = std::max(size_, at);
  }
  return {};
}

Result<> ShadowStore::Write(uint64_t at, std::span<const iovec> from) {
  std::lock_guard lock(mutex_);
  for (const iovec& part : from) {
    ConstBytes bytes(static_cast<const std::byte*>(part.iov_base), part.iov_len);
    if (caps().block_device && !FitsIn(at, bytes.size(), size_)) {
      return Fail(Code::kNoSpace, "'{}': the device is full", base_.name());
    }
    TRY(PutLocked(at, bytes));
    at += bytes.size();
  }
  return {};
}

Result<> ShadowStore::Zero(Range range, bool may_unmap) {
  const std::vector<std::byte> zeros(kPage);
  std::lock_guard lock(mutex_);
  if (caps().block_device && !FitsIn(range.offset, range.length, size_)) {
    return Fail(Code::kNoSpace, "'{}': the device is full", base_.name());
  }
  for (uint64_t at = range.offset; at < range.end();) {
    const uint64_t length = std::min(range.end() - at, kPage - at % kPage);
    if (may_unmap) {
      const Run run = TRY(RunLocked(at));
      if (!run.data) {  // what is a hole stays one
        at += std::min(run.length, range.end() - at);
        continue;
      }
    }
    if (may_unmap && length == kPage) {
      *TRY(PageLocked(at / kPage)) = std::vector<std::byte>();
    } else {
      TRY(PutLocked(at, ConstBytes(zeros).first(length)));
    }
    at += length;
  }
  size_ = std::max(size_, range.end());
  return {};
}

Result<> ShadowStore::Resize(uint64_t size) {
  if (caps().block_device) return Fail(Code::kUnsupported, "'{}' is a device", base_.name());
  std::lock_guard lock(mutex_);
  if (size < size_) {
    base_end_ = std::min(base_end_, size);
    pages_.erase(pages_.lower_bound(DivideUp(size, kPage)), pages_.end());
    if (auto last = pages_.find(size / kPage); last != pages_.end() && !last->second.empty()) {
      std::ranges::fill(Bytes(last->second).subspan(size % kPage), std::byte{0});
    }
  }
  size_ = size;
  return {};
}

Result<> ShadowStore::Allocate(Range range) {
  std::lock_guard lock(mutex_);
  size_ = std::max(size_, range.end());
  return {};
}

Result<Store::Run> ShadowStore::FindRun(uint64_t at) {
  std::lock_guard lock(mutex_);
  Run run = TRY(RunLocked(at));
  run.length = std::min(run.length, size_ - at);
  return run;
}

// May go on past the end.
Result<Store::Run> ShadowStore::RunLocked(uint64_t at) {
  auto page = pages_.lower_bound(at / kPage);
  if (page != pages_.end() && page->first == at / kPage) {
    return Run{(at / kPage + 1) * kPage - at, !page->second.empty()};
  }
  const uint64_t end = page == pages_.end() ? UINT64_MAX : page->first * kPage;
  if (at >= base_end_) return Run{end - at, false};
  Run run = TRY(base_.FindRun(at));
  run.length = std::min({run.length, end - at, base_end_ - at});
  return run;
}

Result<std::vector<Range>> ShadowStore::Changed() const {
  constexpr uint64_t kSector = 512;
  std::lock_guard lock(mutex_);
  const uint64_t base_size = TRY(base_.Size());
  std::vector<Range> changed;
  std::vector<std::byte> before(kPage);
  const std::vector<std::byte> zeros(kPage);
  for (const auto& [index, kept] : pages_) {
    const std::vector<std::byte>& page = kept.empty() ? zeros : kept;
    const uint64_t there = std::min(kPage, base_size - std::min(base_size, index * kPage));
    std::ranges::fill(before, std::byte{0});
    if (there > 0) TRY(base_.Read(index * kPage, Bytes(before).first(there)));
    for (uint64_t at = 0; at < kPage; at += kSector) {
      const uint64_t here = index * kPage + at;
      if (here >= size_ || std::ranges::equal(ConstBytes(page).subspan(at, kSector),
                                              ConstBytes(before).subspan(at, kSector))) {
        continue;
      }
      const uint64_t end = std::min(here + kSector, size_);
      if (!changed.empty() && changed.back().end() == here) {
        changed.back().length += end - here;
      } else {
        changed.push_back(Range::FromTo(here, end));
      }
    }
  }
  return changed;
}

}  // namespace platter
