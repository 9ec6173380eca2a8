#include "formats/vhd/vhd_alloc.h"

#include <algorithm>
#include <mutex>

#include "base/bytes.h"
#include "base/check.h"

namespace platter::vhd {

namespace {
constexpr uint64_t kAlign = 4096;      // bytes: of a block's data
constexpr uint64_t kGrow = 16 * kMiB;  // of the file, at least
constexpr size_t kMostFree = 65536;    // units in memory; more stay unused until the next opening
}  // namespace

Allocator::Allocator(Store& store, PinSet& pins, uint64_t bitmap_size, uint64_t unit)
    : store_(store),
      pins_(pins),
      bitmap_size_(bitmap_size),
      unit_(unit),
      fixed_size_(store.caps().block_device) {}

// The first place from `at` on whose data is aligned.
uint64_t Allocator::PlaceLocked(uint64_t at) const {
  return RoundUp(at + bitmap_size_, kAlign) - bitmap_size_;
}

Result<> Allocator::Open(const std::vector<uint64_t>& starts, uint64_t end, bool footer,
                         bool plain) {
  std::lock_guard lock(mutex_);
  for (size_t i = 1; i < starts.size() && free_.size() < kMostFree; ++i) {
    uint64_t gap = starts[i - 1] + unit_;
    if (PlaceLocked(gap) + unit_ <= starts[i]) gap = PlaceLocked(gap);
    for (; gap + unit_ <= starts[i] && free_.size() < kMostFree; gap = PlaceLocked(gap + unit_)) {
      free_.emplace(gap, false);
    }
  }
  end_ = end;
  footer_there_ = footer;
  plain_ = plain;
  file_size_ = TRY(store_.Size());
  return {};
}

Result<std::vector<uint64_t>> Allocator::Allocate(uint64_t most) {
  CHECK(most > 0);
  std::lock_guard lock(mutex_);
  std::vector<uint64_t> units;
  while (units.size() < most && !free_.empty()) units.push_back(TRY(TakeFreeLocked()));
  if (!units.empty()) return units;
  uint64_t first = PlaceLocked(end_), stride = RoundUp(unit_, kAlign);
  uint64_t last = first + (most - 1) * stride;
  if (last / kSector >= kUnused) {
    most = first / kSector >= kUnused ? 0 : (uint64_t{kUnused} * kSector - 1 - first) / stride + 1;
    if (most == 0) return Fail(Code::kNoSpace, "a VHD file cannot have blocks past 2 TiB");
    last = first + (most - 1) * stride;
  }
  TRY(GrowLocked(last + unit_));
  for (uint64_t i = 0; i < most; ++i) units.push_back(first + i * stride);
  end_ = last + unit_;
  return units;
}

Result<uint64_t> Allocator::TakeFreeLocked() {
  auto first = free_.begin();
  if (!first->second) TRY(store_.Zero({first->first, unit_}, /*may_unmap=*/true));
  uint64_t start = first->first;
  free_.erase(first);
  return start;
}

Result<uint64_t> Allocator::AllocateEnd(uint64_t length) {
  std::lock_guard lock(mutex_);
  uint64_t start = RoundUp(end_, kSector);
  TRY(GrowLocked(start + length));
  end_ = start + length;
  plain_ = false;
  return start;
}

// The file reaches to `end`, and reads as zeros from end_ on.
Result<> Allocator::GrowLocked(uint64_t end) {
  if (fixed_size_) {
    if (end + kSector > file_size_) {
      return Fail(Code::kNoSpace, "the device has {} bytes; {} are needed", file_size_.load(),
                  end + kSector);
    }
    footer_there_ = false;
    return store_.Zero(Range::FromTo(end_, end), /*may_unmap=*/true);
  }
  if (!clean_ || file_size_ < end_) {
    // The footer goes, so that its place reads as zeros; until the next one is written the copy at
    // the start is the one that counts.
    footer_there_ = false;
    TRY(store_.Resize(end_));
    file_size_ = end_;
    clean_ = true;
  }
  if (end <= file_size_) return {};
  uint64_t size = std::max(end, file_size_ + kGrow);
  TRY(store_.Resize(size));
  file_size_ = size;
  return {};
}

void Allocator::GiveBack(uint64_t start) {
  std::lock_guard lock(mutex_);
  free_.emplace(start, false);
}

void Allocator::Retire(uint64_t start, uint64_t generation) {
  std::lock_guard lock(mutex_);
  retired_.push_back({start, pins_.Now(), generation});
}

bool Allocator::HasRetired() const {
  std::lock_guard lock(mutex_);
  return !retired_.empty();
}

void Allocator::Settle(uint64_t durable) {
  std::lock_guard lock(mutex_);
  const bool punch = store_.caps().punch;
  while (!retired_.empty()) {
    const Retired& oldest = retired_.front();
    if (oldest.generation >= durable || !pins_.Reached(oldest.epoch)) return;
    // Best effort: where it fails the unit is zeroed when it is used again.
    bool zeroed = punch && store_.Zero(Range{oldest.start, unit_}, true).has_value();
    free_.emplace(oldest.start, zeroed);
    retired_.pop_front();
  }
}

Result<> Allocator::PutFooter(const DiskFooter& footer) {
  std::lock_guard lock(mutex_);
  if (footer_there_) return {};
  end_ = RoundUp(end_, kSector);
  TRY_AS("footer", store_.Write(end_, AsBytes(footer)));
  if (!fixed_size_) {
    TRY_AS("footer", store_.Resize(end_ + kSector));
    file_size_ = end_ + kSector;
  }
  footer_there_ = true;
  clean_ = false;
  return {};
}

void Allocator::FooterChanged() {
  std::lock_guard lock(mutex_);
  footer_there_ = false;
}

void Allocator::Trim() {
  std::lock_guard lock(mutex_);
  while (!free_.empty()) {
    auto last = std::prev(free_.end());
    const uint64_t unit_end = last->first + unit_;
    // A unit that was trimmed has a gap in front of it, to be aligned.
    if (unit_end != end_ && !(plain_ && PlaceLocked(unit_end) == end_)) return;
    end_ = last->first;
    free_.erase(last);
    footer_there_ = clean_ = false;
  }
}

}  // namespace platter::vhd
