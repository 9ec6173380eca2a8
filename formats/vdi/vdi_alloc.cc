#include "formats/vdi/vdi_alloc.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace platter::vdi {

namespace {
constexpr uint64_t kGrowBytes = 8 * kMiB;            // steps in which the file grows
constexpr uint64_t kMostBlocks = uint64_t{1} << 30;  // of an image that can be written: 128 MiB
                                                     // of memory while it is opened
constexpr size_t kMostFreeRuns = 64 * 1024;          // more holes than these are not used
constexpr size_t kMostRetired = 64 * 1024;
}  // namespace

Result<> Allocator::Open(const Header& header) {
  std::lock_guard lock(mutex_);
  data_offset_ = header.data_offset;
  stride_ = header.stride();
  const uint64_t size = TRY(file_.Size());
  file_size_ = size;
  const uint64_t most = std::min<uint64_t>(header.BlocksInFile(size), kDiscarded);
  if (most > kMostBlocks) {
    return Fail(Code::kUnsupported, "{} host blocks of {} bytes are too many to write to", most,
                header.block_size);
  }
  BlockSet used(most);
  uint32_t end = 0;
  TRY(ReadMap(file_, header, [&](uint32_t first, std::span<const le32> entries) -> Result<> {
    for (size_t i = 0; i < entries.size(); ++i) {
      const uint32_t entry = entries[i];
      if (!IsHostBlock(entry)) continue;
      // One that the file holds in part as well: when the file grows, zeros would stand for what
      // was cut off.
      if (entry >= most) {
        return Fail(Code::kCorrupt,
                    "block {} is in host block {}, which reaches past the end of the file ({:#x}): "
                    "check can repair that",
                    first + i, entry, size);
      }
      if (!used.Insert(entry)) {
        return Fail(Code::kCorrupt,
                    "block {} is in host block {}, which another one is in too: check can repair "
                    "that",
                    first + i, entry);
      }
      end = std::max(end, entry + 1);
    }
    return {};
  }));
  // What the header counts beyond may be known to somebody else as taken; it holds nothing.
  end_ = end;
  untouched_ = size <= data_offset_ ? 0 : DivideUp(size - data_offset_, stride_);
  used.EachGap(end, [&](uint32_t first, uint32_t count) {
    free_.emplace(first, count);
    return free_.size() < kMostFreeRuns;
  });
  return {};
}

// The file reaches to the end of `blocks` host blocks.
Result<> Allocator::CoverLocked(uint64_t blocks) {
  const uint64_t needed = EndOf(blocks);
  if (needed <= file_size_) return {};
  if (file_.caps().block_device) {
    uint64_t size = TRY(file_.Size());
    if (needed > size) {
      return Fail(Code::kNoSpace, "the device is full ({} bytes, {} needed)", size, needed);
    }
    file_size_ = size;
    return {};
  }
  uint64_t size = RoundUp(needed, kGrowBytes);
  TRY(file_.Resize(size));
  file_size_.store(size, std::memory_order_release);
  return {};
}

Result<uint32_t> Allocator::AppendOne(uint32_t least) {
  std::lock_guard lock(mutex_);
  const uint32_t block = std::max(end_, least);
  if (block >= kDiscarded) return Fail(Code::kNoSpace, "the format cannot name more host blocks");
  TRY(CoverLocked(uint64_t{block} + 1));
  if (block > end_) AddFreeLocked({end_, block - end_});
  end_ = block + 1;
  untouched_ = std::max<uint64_t>(untouched_, end_);
  return block;
}

Result<Run> Allocator::Allocate(uint32_t most) {
  std::lock_guard lock(mutex_);
  if (auto hole = free_.begin(); hole != free_.end()) {
    auto [first, count] = *hole;
    Run run{first, std::min(count, most)};
    TRY(CoverLocked(run.end()));
    free_.erase(hole);
    if (count > run.count) free_.emplace(run.end(), count - run.count);
    return run;
  }
  most = std::min(most, kDiscarded - end_);
  if (most == 0) return Fail(Code::kNoSpace, "the format cannot name more host blocks");
  TRY(CoverLocked(uint64_t{end_} + most));
  Run run{end_, most, end_ >= untouched_ && !file_.caps().block_device};
  end_ += most;
  untouched_ = std::max<uint64_t>(untouched_, end_);
  return run;
}

void Allocator::GiveBack(Run run) {
  if (run.count == 0) return;
  std::lock_guard lock(mutex_);
  AddFreeLocked(run);
}

void Allocator::AddFreeLocked(Run run) {
  auto [at, fresh] = free_.emplace(run.first, run.count);
  if (!fresh) return;
  if (auto next = std::next(at); next != free_.end() && next->first == run.end()) {
    at->second += next->second;
    free_.erase(next);
  }
  if (at != free_.begin()) {
    auto before = std::prev(at);
    if (before->first + before->second == at->first) {
      before->second += at->second;
      free_.erase(at);
    }
  }
}

void Allocator::Retire(uint32_t block, uint64_t generation) {
  std::lock_guard lock(mutex_);
  retired_.push_back({block, pins_.Now(), generation});
}

void Allocator::Settle(uint64_t durable) {
  std::lock_guard lock(mutex_);
  while (!retired_.empty()) {
    const Retired& first = retired_.front();
    if (first.generation >= durable || !pins_.Reached(first.epoch)) return;
    if (file_.caps().punch) {
      // Best effort: a hole may hold anything.
      (void)file_.Zero({EndOf(first.block), stride_}, /*may_unmap=*/true);
    }
    AddFreeLocked({first.block, 1});
    retired_.pop_front();
  }
}

bool Allocator::HasRetired() const {
  std::lock_guard lock(mutex_);
  return !retired_.empty();
}

bool Allocator::crowded() const {
  std::lock_guard lock(mutex_);
  return retired_.size() > kMostRetired;
}

uint32_t Allocator::end() const {
  std::lock_guard lock(mutex_);
  return end_;
}

std::vector<Run> Allocator::Holes() const {
  std::lock_guard lock(mutex_);
  std::vector<Run> holes;
  for (auto [first, count] : free_) holes.push_back({first, count});
  return holes;
}

void Allocator::Filled(uint32_t used) {
  std::lock_guard lock(mutex_);
  free_.clear();
  end_ = used;
}

void Allocator::DropLastHoles() {
  std::lock_guard lock(mutex_);
  // Neighbouring holes are one: no other can end where the last one begins.
  if (free_.empty()) return;
  auto last = std::prev(free_.end());
  if (last->first + last->second != end_) return;
  end_ = last->first;
  free_.erase(last);
}

Result<> Allocator::Cut() {
  std::lock_guard lock(mutex_);
  const uint64_t size = EndOf(end_);
  if (file_.caps().block_device || size >= file_size_) return {};
  TRY(file_.Resize(size));
  file_size_ = size;
  untouched_ = end_;
  return {};
}

}  // namespace platter::vdi
