#include "formats/vhdx/vhdx_space.h"

#include <algorithm>
#include <mutex>

#include "base/check.h"

namespace platter::vhdx {

namespace {
constexpr uint64_t kMostFile = uint64_t{1} << 47;
// The file grows by an eighth of what it has, so that it grows seldom, at most by this.
constexpr uint64_t kMostGrowth = 64 * kMiB;
}  // namespace

Result<> SpaceMap::Open() {
  uint64_t size = TRY(file_.Size());
  if (size > kMostFile) {
    return Fail(Code::kUnsupported, "writing to a file of {} bytes ({} is the most)", size,
                kMostFile);
  }
  std::lock_guard lock(mutex_);
  fixed_size_ = file_.caps().block_device;
  file_size_ = size;
  used_.assign(DivideUp(size, kMiB), false);
  end_ = 0;
  untouched_ = fixed_size_ ? DivideUp(kMostFile, kMiB) : used_.size();
  hint_ = hint_length_ = 0;
  return {};
}

bool SpaceMap::IsUsedLocked(uint64_t unit) const { return unit < used_.size() && used_[unit]; }

bool SpaceMap::Use(Range place) {
  std::lock_guard lock(mutex_);
  bool fresh = true;
  for (uint64_t i = place.offset / kMiB; i < DivideUp(place.end(), kMiB) && fresh; ++i) {
    fresh = !IsUsedLocked(i);
  }
  SetLocked(place, true);
  return fresh;
}

void SpaceMap::SetLocked(Range host, bool used) {
  const uint64_t first = host.offset / kMiB, last = DivideUp(host.end(), kMiB);
  if (last > used_.size()) used_.resize(last, false);
  for (uint64_t i = first; i < last; ++i) used_[i] = used;
  if (used) {
    end_ = std::max(end_, last);
    return;
  }
  hint_ = std::min(hint_, first);
  hint_length_ = 0;
  while (end_ > 0 && !used_[end_ - 1]) --end_;
}

// The first free run of `length` to `length` * `most` MiB that lies before the end; empty if there
// is none. What was passed over is not looked at again until something comes free.
Range SpaceMap::FindLocked(uint64_t length, uint64_t most) {
  uint64_t at = length >= hint_length_ ? hint_ : 0;
  while (at < end_) {
    if (used_[at]) {
      ++at;
      continue;
    }
    uint64_t stop = at;
    while (stop < end_ && stop - at < length * most && !used_[stop]) ++stop;
    if (stop - at >= length) {
      hint_ = at, hint_length_ = length;
      return {at, RoundDown(stop - at, length)};
    }
    at = stop;
  }
  hint_ = end_, hint_length_ = length;
  return {};
}

Result<SpaceMap::Run> SpaceMap::Allocate(uint64_t unit, uint64_t most) {
  CHECK(unit > 0 && IsAligned(unit, kMiB) && most > 0);
  std::lock_guard lock(mutex_);
  const uint64_t length = unit / kMiB;
  Range found = FindLocked(length, most);
  if (found.empty()) {
    found = {end_, length * most};
    Result<> grown = GrowLocked(found.end() * kMiB);
    if (!grown.has_value() && most > 1) {
      found.length = length;
      grown = GrowLocked(found.end() * kMiB);
    }
    TRY(std::move(grown));
  }
  Run run{{found.offset * kMiB, found.length * kMiB}, found.offset >= untouched_};
  SetLocked(run.host, true);
  if (!fixed_size_) untouched_ = std::max(untouched_, end_);
  return run;
}

Result<> SpaceMap::GrowLocked(uint64_t size) {
  if (size <= file_size_) return {};
  if (fixed_size_ || size > kMostFile) {
    return Fail(Code::kNoSpace, "the image is full ({} bytes, {} needed)", file_size_.load(), size);
  }
  uint64_t more = std::min(RoundUp(size + std::min(size / 8, kMostGrowth), kMiB), kMostFile);
  TRY(file_.Resize(more));
  file_size_.store(more, std::memory_order_release);
  return {};
}

void SpaceMap::GiveBack(Range host) {
  if (host.empty()) return;
  std::lock_guard lock(mutex_);
  SetLocked(host, false);
}

void SpaceMap::Retire(Range host, uint64_t generation, bool punch) {
  if (host.empty()) return;
  uint64_t epoch = pins_.Now();
  std::lock_guard lock(mutex_);
  retired_.push_back({host, epoch, generation, punch});
}

void SpaceMap::Settle(uint64_t durable) {
  std::lock_guard lock(mutex_);
  for (size_t left = retired_.size(); left > 0; --left) {
    Retired item = retired_.front();
    retired_.pop_front();
    if (item.generation >= durable || !pins_.Reached(item.epoch)) {
      retired_.push_back(item);
      continue;
    }
    // Best effort: the space is free for us in any case.
    if (item.punch && file_.caps().punch) (void)file_.Zero(item.host, /*may_unmap=*/true);
    SetLocked(item.host, false);
  }
}

bool SpaceMap::HasRetired() const {
  std::lock_guard lock(mutex_);
  return !retired_.empty();
}

Result<> SpaceMap::Trim() {
  std::lock_guard lock(mutex_);
  uint64_t size = end_ * kMiB;
  if (fixed_size_ || size >= file_size_) return {};
  TRY(file_.Resize(size));
  file_size_ = size;
  return {};
}

}  // namespace platter::vhdx
