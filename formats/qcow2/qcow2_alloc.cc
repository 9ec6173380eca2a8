#include "formats/qcow2/qcow2_alloc.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"

namespace platter::qcow2 {

namespace {
constexpr size_t kMostFreeRuns = 4096;   // in memory; more are found again by looking
constexpr size_t kRunsTried = 64;        // for one request
constexpr uint64_t kGoodRun = 16;        // clusters: a shorter run is not worth a larger request
constexpr uint64_t kGrowBytes = kMiB;    // of the file, at least
constexpr size_t kMostRetired = 65536;   // runs, before a flush is asked for
constexpr size_t kMostDirty = 4 * kMiB;  // bytes of refcount blocks, likewise
constexpr uint64_t kMostHostBits = 56;   // no L2 entry can name more
}  // namespace

Allocator::Allocator(Store& file, const Header& header, PinSet& pins, MetadataMap& metadata)
    : file_(file),
      cluster_bits_(header.cluster_bits),
      cluster_size_(header.cluster_size()),
      packed_limit_(CompressedHostLimit(header)),
      fixed_size_(file.caps().block_device),
      pins_(pins),
      metadata_(metadata),
      refcounts_(file, header) {}

Result<> Allocator::Open() {
  std::lock_guard lock(mutex_);
  TRY(refcounts_.Load());
  for (uint64_t i = 0; i < refcounts_.table().size(); ++i) {
    uint64_t block = TRY(refcounts_.Block(i * refcounts_.per_block()));
    if (block != 0) metadata_.AddCluster(block);
  }
  opened_size_ = TRY(file_.Size());
  file_size_ = opened_size_;
  // On a device the end of the image is not the end of what is there. In a file it is, and the
  // safer answer where refcounts are wrong.
  end_ = fixed_size_ ? TRY(LastUsedLocked()) : DivideUp(opened_size_, cluster_size_);
  untouched_ = fixed_size_ ? UINT64_MAX : end_;
  return {};
}

// One past the last cluster whose refcount is not 0.
Result<uint64_t> Allocator::LastUsedLocked() {
  const EntryTable& table = refcounts_.table();
  for (uint64_t index = table.size(); index-- > 0;) {
    if (table[index] == 0) continue;
    uint64_t last = 0, end = (index + 1) * refcounts_.per_block();
    for (uint64_t at = index * refcounts_.per_block(); at < end;) {
      uint64_t next = 0;
      Clusters free = TRY(refcounts_.FindFree(at, end, next));
      if (free.first > at) last = free.first;
      at = next;
    }
    if (last > 0) return last;
  }
  return uint64_t{1};  // the header
}

Result<bool> Allocator::CountsPastEnd() {
  std::lock_guard lock(mutex_);
  if (fixed_size_) return false;
  const uint64_t per_block = refcounts_.per_block(), stop = RoundUp(end_ + 1, per_block);
  // A block for nothing but what is not there was made by somebody who meant to write there.
  const EntryTable& table = refcounts_.table();
  for (uint64_t index = stop / per_block; index < table.size(); ++index) {
    if (table[index] != 0) return true;
  }
  return TRY(LastUsedInLocked({end_, stop - end_})) != 0;
}

Result<> Allocator::CoverLastCluster() {
  std::lock_guard lock(mutex_);
  return GrowFileLocked(end_);
}

Result<> Allocator::Cover(Range host) {
  std::lock_guard lock(mutex_);
  return GrowFileLocked(DivideUp(host.end(), cluster_size_));
}

Result<Clusters> Allocator::Allocate(uint64_t most) {
  std::lock_guard lock(mutex_);
  return AllocateLocked(most);
}

Result<Clusters> Allocator::AllocateTogether(uint64_t count) {
  std::lock_guard lock(mutex_);
  return AppendTogetherLocked(count);
}

Result<Clusters> Allocator::AllocateLocked(uint64_t most) {
  CHECK(most > 0);
  TRY(ScanLocked());
  Clusters run = TRY(TakeFreeLocked(most, std::min(most, kGoodRun)));
  if (run.count > 0) return run;
  auto appended = AppendLocked(most);
  if (appended.has_value() || appended.error().code() != Code::kNoSpace) return appended;
  run = TRY(TakeFreeLocked(most, 1));
  if (run.count > 0) return run;
  return appended;
}

// Looks for free clusters in one more slice of what was not looked at yet.
Result<> Allocator::ScanLocked() {
  if (scan_ >= end_ || free_.size() >= kMostFreeRuns) return {};
  uint64_t next = 0, stop = scan_;
  do {
    Clusters run = TRY(refcounts_.FindFree(scan_, end_, next));
    scan_ = next;
    if (run.count > 0) AddFreeLocked(run);
  } while (scan_ < end_ && scan_ / refcounts_.per_block() == stop / refcounts_.per_block() &&
           scan_ - stop < 8 * kKiB && free_.size() < kMostFreeRuns);
  return {};
}

Result<Clusters> Allocator::TakeFreeLocked(uint64_t most, uint64_t least) {
  size_t tries = 0;
  for (auto it = free_.begin(); it != free_.end() && tries < kRunsTried; ++it, ++tries) {
    if (it->second < least) continue;
    Clusters run{.first = it->first, .count = std::min(it->second, most)};
    Range host{Offset(run.first), Offset(run.count)};
    if (std::string what = metadata_.Find(host); !what.empty()) {
      return Fail(Code::kCorrupt, "the refcounts call clusters at {:#x} free which hold {}",
                  host.offset, what);
    }
    TRY(GrowFileLocked(run.end()));
    TRY(refcounts_.Fill(run, 1));
    Clusters rest{run.end(), it->second - run.count};
    free_.erase(it);
    if (rest.count > 0) free_.emplace(rest.first, rest.count);
    return run;
  }
  return Clusters{};
}

// As many clusters as one refcount block speaks of, so that a large request never fails for what a
// smaller one would get.
Result<Clusters> Allocator::AppendLocked(uint64_t most) {
  uint64_t left = refcounts_.per_block() - end_ % refcounts_.per_block();
  return AppendTogetherLocked(std::min(most, left));
}

Result<Clusters> Allocator::AppendTogetherLocked(uint64_t count) {
  uint64_t blocks = 0;
  while (true) {
    blocks = BlocksMissing(end_, count);
    if (end_ + count + blocks > refcounts_.limit()) {
      TRY(GrowTableLocked(count));
      continue;
    }
    uint64_t used = TRY(LastUsedInLocked({end_, count + blocks}));
    if (used == 0) break;
    end_ = used + 1;
  }
  Clusters run{end_, count};
  run.zeroed = run.first >= untouched_;
  TRY(PrepareLocked(run, blocks));
  TRY(PlaceLocked(run, blocks));
  return run;
}

// The last cluster of `run` that is counted already, 0 if none is. A crash of another program may
// have left such behind the end of the file, or preallocated clusters that were never written.
Result<uint64_t> Allocator::LastUsedInLocked(Clusters run) {
  uint64_t last = 0;
  for (uint64_t at = run.first, next = 0; at < run.end(); at = next) {
    Clusters free = TRY(refcounts_.FindFree(at, run.end(), next));
    if (TRY(refcounts_.Block(at)) == 0) continue;
    if (free.first > at || free.count == 0) last = free.first - 1;
  }
  return last;
}

// How many refcount blocks have to be made, right behind them, for `count` clusters from `first` on
// and for the blocks themselves.
uint64_t Allocator::BlocksMissing(uint64_t first, uint64_t count) const {
  const uint64_t per_block = refcounts_.per_block();
  for (uint64_t blocks = 0;;) {
    uint64_t last = (first + count + blocks - 1) / per_block, missing = 0;
    for (uint64_t index = first / per_block; index <= last; ++index) {
      if (index >= refcounts_.table().size() || refcounts_.table()[index] == 0) ++missing;
    }
    if (missing == blocks) return blocks;
    blocks = missing;
  }
}

// Everything that can fail before `run`, which begins at end_, and the refcount blocks behind it
// are taken: PlaceLocked then finds the blocks that are there in memory.
Result<> Allocator::PrepareLocked(Clusters run, uint64_t blocks) {
  Clusters all{run.first, run.count + blocks};
  Range host{Offset(all.first), Offset(all.count)};
  if (all.end() > (uint64_t{1} << (kMostHostBits - cluster_bits_))) {
    return Fail(Code::kNoSpace, "the image would be larger than 2^{} bytes", kMostHostBits);
  }
  if (std::string what = metadata_.Find(host); !what.empty()) {
    return Fail(Code::kCorrupt, "the refcounts call clusters at {:#x} free which hold {}",
                host.offset, what);
  }
  TRY(GrowFileLocked(all.end()));
  for (uint64_t at = all.first; at < all.end(); at += refcounts_.per_slice()) {
    TRY(refcounts_.Get(at));
  }
  TRY(refcounts_.Get(all.end() - 1));
  return {};
}

Result<> Allocator::PlaceLocked(Clusters run, uint64_t blocks) {
  const uint64_t per_block = refcounts_.per_block();
  Clusters all{run.first, run.count + blocks};
  uint64_t place = run.end();
  for (uint64_t index = run.first / per_block; index <= (all.end() - 1) / per_block; ++index) {
    if (refcounts_.table()[index] == 0) refcounts_.AddBlock(index * per_block, place++);
  }
  CHECK(place == all.end());
  if (scan_ == end_) scan_ = all.end();
  end_ = all.end();
  untouched_ = std::max(untouched_, end_);
  return refcounts_.Fill(all, 1);
}

// How many clusters the refcount table at end_ takes that can speak of itself, its blocks and
// `more` clusters behind them.
Result<uint64_t> Allocator::LargerTableLocked(uint64_t more) const {
  const uint64_t per_cluster = cluster_size_ / sizeof(uint64_t);
  const uint64_t most = kMaxRefcountTableBytes >> cluster_bits_;
  auto covers = [&](uint64_t clusters) {
    uint64_t all = clusters + more, blocks = BlocksMissing(end_, all);
    // One block more than needed: those that follow make their own.
    return (end_ + all + blocks) / refcounts_.per_block() + 1 < clusters * per_cluster;
  };
  uint64_t old = refcounts_.table().size() / per_cluster;
  uint64_t count = std::max(old + 1, std::min(old * 3 / 2, most));
  while (count < most && !covers(count)) ++count;
  if (count <= most && covers(count)) return count;
  return Fail(Code::kNoSpace, "the refcount table would be larger than {} bytes",
              kMaxRefcountTableBytes);
}

// Moves the refcount table to the end of the file, where it gets room for `more` clusters.
Result<> Allocator::GrowTableLocked(uint64_t more) {
  Clusters run;
  uint64_t blocks = 0, used = 0;
  do {
    run = {.first = end_, .count = TRY(LargerTableLocked(more))};
    blocks = BlocksMissing(run.first, run.count);
    used = TRY(LastUsedInLocked({.first = run.first, .count = run.count + blocks}));
    if (used != 0) end_ = used + 1;
  } while (used != 0);
  const EntryTable& table = refcounts_.table();
  Clusters old{.first = table.offset() >> cluster_bits_,
               .count = (table.size() * sizeof(uint64_t)) >> cluster_bits_};
  TRY(PrepareLocked(run, blocks));
  refcounts_.MoveTable(run);
  old_tables_.push_back(old);
  return PlaceLocked(run, blocks);
}

// The file reaches to the end of cluster number `clusters` - 1.
Result<> Allocator::GrowFileLocked(uint64_t clusters) {
  uint64_t needed = Offset(clusters);
  if (needed <= file_size_) return {};
  if (fixed_size_) {
    uint64_t size = TRY(file_.Size());
    if (needed > size) {
      return Fail(Code::kNoSpace, "the device is full ({} bytes, {} needed)", size, needed);
    }
    file_size_ = size;
    return {};
  }
  uint64_t size = RoundUp(needed, std::max(cluster_size_, kGrowBytes));
  Result<> grown = file_.Resize(size);
  if (!grown.has_value() && grown.error().code() == Code::kUnsupported) {
    return Fail(Code::kNoSpace, "{}", grown.error().text());
  }
  TRY(std::move(grown));
  file_size_.store(size, std::memory_order_release);
  return {};
}

Result<> Allocator::Trim() {
  std::lock_guard lock(mutex_);
  uint64_t size = std::max(opened_size_, Offset(end_));
  if (fixed_size_ || size >= file_size_) return {};
  TRY(file_.Resize(size));
  file_size_ = size;
  return {};
}

Result<std::vector<uint64_t>> Allocator::AllocatePacked(std::span<const uint32_t> sizes) {
  std::lock_guard lock(mutex_);
  std::vector<uint64_t> places;
  for (uint32_t size : sizes) {
    auto place = PackOneLocked(size);
    if (!place.has_value()) {
      if (places.empty()) return std::unexpected(std::move(place.error()));
      break;
    }
    places.push_back(*place);
  }
  return places;
}

// A unit goes behind the one before it, if that one's last cluster can be shared, and continues
// into the next cluster, if that one follows.
Result<uint64_t> Allocator::PackOneLocked(uint32_t size) {
  const uint64_t used = packed_at_ % cluster_size_, room = used == 0 ? 0 : cluster_size_ - used;
  const uint64_t current = packed_at_ >> cluster_bits_;
  uint64_t count = room > 0 ? TRY(refcounts_.Get(current)) : 0;
  const bool shared = count > 0 && count < refcounts_.max();
  uint64_t at = packed_at_;
  if (!shared || size > room) {
    Clusters next = TRY(AllocateLocked(1));
    if (!shared || next.first != current + 1) at = Offset(next.first);
    if (!FitsIn(at, size, packed_limit_)) {
      TRY(DropLocked(next, false));
      return Fail(Code::kNoSpace, "compressed data at {:#x}: the format can name {:#x} bytes", at,
                  packed_limit_);
    }
  }
  if (at == packed_at_ && shared) TRY(refcounts_.Fill({current, 1}, count + 1));
  packed_at_ = at + size;
  return at;
}

void Allocator::GiveBack(Clusters run) {
  std::lock_guard lock(mutex_);
  (void)DropLocked(run, false);
}

void Allocator::GiveBackPacked(uint64_t offset, uint64_t length) {
  uint64_t first = offset >> cluster_bits_, last = (offset + length - 1) >> cluster_bits_;
  GiveBack({first, last - first + 1});
}

// One reference less to each cluster of the run.
Result<> Allocator::DropLocked(Clusters run, bool punch) {
  Clusters freed;  // the run of freed clusters that is being collected
  Result<> result;
  for (uint64_t at = run.first; at <= run.end(); ++at) {
    bool ends = at == run.end() || freed.end() != at;
    if (ends && freed.count > 0) {
      Range host{Offset(freed.first), Offset(freed.count)};
      metadata_.Remove(host);
      // Best effort: the space is free for us in any case.
      if (punch && file_.caps().punch) (void)file_.Zero(host, /*may_unmap=*/true);
      AddFreeLocked(freed);
      freed = {};
    }
    if (at == run.end()) break;
    Result<> dropped = DropOneLocked(at, freed);
    if (!dropped.has_value()) result = std::move(dropped);
  }
  return result;
}

Result<> Allocator::DropOneLocked(uint64_t cluster, Clusters& freed) {
  uint64_t count = TRY(refcounts_.Get(cluster));
  // Nobody counted it: the image was damaged before. It is not ours to give away.
  if (count == 0) return {};
  TRY(refcounts_.Fill({cluster, 1}, count - 1));
  if (count > 1) return {};
  if (packed_at_ > 0 && (packed_at_ - 1) >> cluster_bits_ == cluster) packed_at_ = 0;
  if (freed.count == 0) freed.first = cluster;
  ++freed.count;
  return {};
}

void Allocator::AddFreeLocked(Clusters run) {
  if (run.first >= end_) return;  // counted past the end, by another program
  auto after = free_.upper_bound(run.first);
  if (after != free_.begin()) {
    auto before = std::prev(after);
    if (before->first + before->second >= run.first) {
      run = {before->first, std::max(run.end(), before->first + before->second) - before->first};
      free_.erase(before);
    }
  }
  while (after != free_.end() && after->first <= run.end()) {
    run.count = std::max(run.end(), after->first + after->second) - run.first;
    after = free_.erase(after);
  }
  if (run.end() >= end_) {
    // The last of the image: the end comes back. What was not looked at may be more of it.
    end_ = run.first;
    scan_ = std::min(scan_, end_);
    return;
  }
  if (free_.size() >= kMostFreeRuns) {
    scan_ = std::min(scan_, run.first);
    return;
  }
  free_.emplace(run.first, run.count);
}

void Allocator::Retire(Range host, uint64_t generation, bool punch) {
  uint64_t epoch = pins_.Now();
  uint64_t first = host.offset >> cluster_bits_, last = (host.end() - 1) >> cluster_bits_;
  std::lock_guard lock(mutex_);
  if (!retired_.empty()) {
    Retired& back = retired_.back();
    if (back.run.end() == first && back.epoch == epoch && back.generation == generation &&
        back.punch == punch) {
      back.run.count += last - first + 1;
      return;
    }
  }
  retired_.push_back({{first, last - first + 1}, epoch, generation, punch});
}

Result<> Allocator::Settle(uint64_t durable) {
  std::lock_guard lock(mutex_);
  for (size_t left = retired_.size(); left > 0; --left) {
    Retired item = retired_.front();
    retired_.pop_front();
    if (item.generation >= durable || !pins_.Reached(item.epoch)) {
      retired_.push_back(item);
      continue;
    }
    TRY_AS("freeing clusters", DropLocked(item.run, item.punch));
  }
  return {};
}

bool Allocator::HasRetired() const {
  std::lock_guard lock(mutex_);
  return !retired_.empty();
}

Result<uint64_t> Allocator::Refcount(uint64_t offset) {
  std::lock_guard lock(mutex_);
  return refcounts_.Get(offset >> cluster_bits_);
}

Result<> Allocator::Share(Range host) {
  const uint64_t end = DivideUp(host.end(), cluster_size_);
  std::lock_guard lock(mutex_);
  for (uint64_t at = host.offset >> cluster_bits_; at < end; ++at) {
    uint64_t count = TRY(refcounts_.Get(at));
    if (count == 0) return Fail(Code::kCorrupt, "the refcount of {:#x} is 0", Offset(at));
    if (count == refcounts_.max()) {
      return Fail(Code::kNoSpace, "the cluster at {:#x} is used {} times, more cannot be counted",
                  Offset(at), count);
    }
    TRY(refcounts_.Fill({at, 1}, count + 1));
  }
  return {};
}

Refcounts::Batch Allocator::Take() {
  std::lock_guard lock(mutex_);
  return refcounts_.Take();
}

void Allocator::PutBack(const Refcounts::Batch& batch) {
  std::lock_guard lock(mutex_);
  refcounts_.PutBack(batch);
}

void Allocator::Written(const Refcounts::Batch& batch, bool table_moved) {
  std::lock_guard lock(mutex_);
  refcounts_.Written(batch);
  if (!table_moved) return;
  // Those that the header named before; not one that it was told to name by this very batch, if the
  // table has moved on since.
  std::erase_if(old_tables_, [&](const Clusters& old) {
    if (Offset(old.first) == batch.table_offset) return false;
    (void)DropLocked(old, false);
    return true;
  });
}

bool Allocator::dirty() const {
  std::lock_guard lock(mutex_);
  return refcounts_.dirty();
}

bool Allocator::crowded() const {
  std::lock_guard lock(mutex_);
  return refcounts_.dirty_bytes() > kMostDirty || retired_.size() > kMostRetired;
}

}  // namespace platter::qcow2
