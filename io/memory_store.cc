#include "io/memory_store.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "io/iov.h"

namespace platter {
namespace {
constexpr uint64_t kMaxSize = uint64_t{1} << 63;  // bytes: as for files
}

MemoryStore::MemoryStore(uint64_t size, Options options)
    : options_(std::move(options)), size_(size) {
  CHECK(size <= kMaxSize);
}

MemoryStore::MemoryStore(ConstBytes contents, Options options)
    : MemoryStore(contents.size(), std::move(options)) {
  CopyInLocked(0, contents);
}

std::unique_ptr<MemoryStore> MemoryStore::Clone() const {
  std::lock_guard lock(mutex_);
  auto copy = std::make_unique<MemoryStore>(size_, options_);
  copy->chunks_ = chunks_;
  return copy;
}

std::vector<std::byte> MemoryStore::Contents() const {
  std::lock_guard lock(mutex_);
  std::vector<std::byte> all(size_);
  CopyOutLocked(0, all);
  return all;
}

uint64_t MemoryStore::allocated() const {
  std::lock_guard lock(mutex_);
  return chunks_.size() * kChunk;
}

Store::Caps MemoryStore::caps() const {
  return Caps{.punch = true, .block_device = options_.fixed_size};
}

Result<uint64_t> MemoryStore::Size() const {
  std::lock_guard lock(mutex_);
  return size_;
}

Result<> MemoryStore::Read(uint64_t at, std::span<const iovec> into) {
  sched::Yield("store read");
  std::lock_guard lock(mutex_);
  const uint64_t length = IovLength(into);
  if (!FitsIn(at, length, size_)) {
    return Fail(Code::kCorrupt,
                "'{}': {} bytes at {:#x} reach past the end of the file (size {:#x})", name(),
                length, at, size_);
  }
  for (const iovec& one : into) {
    CopyOutLocked(at, Bytes(static_cast<std::byte*>(one.iov_base), one.iov_len));
    at += one.iov_len;
  }
  return {};
}

size_t MemoryStore::TryRead(uint64_t at, std::span<const iovec> into) {
  std::lock_guard lock(mutex_);
  size_t done = 0;
  for (const iovec& one : into) {
    if (at + done >= size_) break;
    size_t count = std::min<uint64_t>(one.iov_len, size_ - at - done);
    CopyOutLocked(at + done, Bytes(static_cast<std::byte*>(one.iov_base), count));
    done += count;
  }
  return done;
}

Result<> MemoryStore::CheckRange(Range range) const {
  if (!options_.writable) return Fail(Code::kReadOnly, "'{}' is open for reading only", name());
  if (!FitsIn(range.offset, range.length, kMaxSize)) {
    return Fail(Code::kOutOfRange, "'{}': {} bytes at {:#x} end past 2^63", name(), range.length,
                range.offset);
  }
  return {};
}

Result<> MemoryStore::GrowLocked(uint64_t size) {
  if (size <= size_) return {};
  if (options_.fixed_size) {
    return Fail(Code::kNoSpace, "'{}': {:#x} is past the end of the device (size {:#x})", name(),
                size, size_);
  }
  size_ = size;
  return {};
}

Result<> MemoryStore::Write(uint64_t at, std::span<const iovec> from) {
  sched::Yield("store write");
  Range range{at, IovLength(from)};
  TRY(CheckRange(range));
  if (range.empty()) return {};
  std::lock_guard lock(mutex_);
  TRY(GrowLocked(range.end()));
  for (const iovec& one : from) {
    CopyInLocked(at, ConstBytes(static_cast<const std::byte*>(one.iov_base), one.iov_len));
    at += one.iov_len;
  }
  return {};
}

Result<> MemoryStore::Zero(Range range, bool may_unmap) {
  sched::Yield("store zero");
  TRY(CheckRange(range));
  if (range.empty()) return {};
  std::lock_guard lock(mutex_);
  TRY(GrowLocked(range.end()));
  ZeroLocked(range, may_unmap);
  return {};
}

Result<> MemoryStore::Sync() {
  sched::Yield("store sync");
  return {};
}

Result<> MemoryStore::Resize(uint64_t size) {
  sched::Yield("store resize");
  TRY(CheckRange(Range{0, size}));
  if (options_.fixed_size) return Fail(Code::kUnsupported, "'{}': the size is fixed", name());
  std::lock_guard lock(mutex_);
  if (size < size_) ZeroLocked(Range::FromTo(size, size_), true);
  size_ = size;
  return {};
}

Result<> MemoryStore::Allocate(Range range) {
  TRY(CheckRange(range));
  if (range.empty()) return {};
  std::lock_guard lock(mutex_);
  TRY(GrowLocked(range.end()));
  for (uint64_t i = range.offset / kChunk; i * kChunk < range.end(); ++i) OwnChunkLocked(i);
  return {};
}

Result<Store::Run> MemoryStore::FindRun(uint64_t at) {
  sched::Yield("store run");
  std::lock_guard lock(mutex_);
  if (at >= size_) {
    return Fail(Code::kOutOfRange, "'{}': {:#x} is past the end of the file (size {:#x})", name(),
                at, size_);
  }
  uint64_t index = at / kChunk;
  auto next = chunks_.lower_bound(index);
  const bool data = next != chunks_.end() && next->first == index;
  if (data) {
    for (; next != chunks_.end() && next->first == index; ++next) ++index;
  } else {
    index = next == chunks_.end() ? DivideUp(size_, kChunk) : next->first;
  }
  return Run{.length = std::min(index * kChunk, size_) - at, .data = data};
}

void MemoryStore::CopyOutLocked(uint64_t at, Bytes into) const {
  while (!into.empty()) {
    size_t inside = at % kChunk, count = std::min(into.size(), kChunk - inside);
    auto found = chunks_.find(at / kChunk);
    if (found == chunks_.end()) {
      std::memset(into.data(), 0, count);
    } else {
      std::memcpy(into.data(), found->second->data() + inside, count);
    }
    at += count;
    into = into.subspan(count);
  }
}

void MemoryStore::CopyInLocked(uint64_t at, ConstBytes from) {
  while (!from.empty()) {
    size_t inside = at % kChunk, count = std::min(from.size(), kChunk - inside);
    std::memcpy(OwnChunkLocked(at / kChunk).data() + inside, from.data(), count);
    at += count;
    from = from.subspan(count);
  }
}

// Visits the chunks that exist: a range of many terabytes costs what it holds. `drop`: whole
// chunks are given back; otherwise they stay, as zeros.
void MemoryStore::ZeroLocked(Range range, bool drop) {
  // Nothing is behind the end, so that the last chunk may go as a whole.
  if (range.end() == size_) range = Range::FromTo(range.offset, RoundUp(size_, kChunk));
  auto it = chunks_.lower_bound(range.offset / kChunk);
  while (it != chunks_.end() && it->first * kChunk < range.end()) {
    Range chunk{it->first * kChunk, kChunk};
    Range part = chunk.Intersect(range);
    if (drop && part == chunk) {
      it = chunks_.erase(it);
      continue;
    }
    std::memset(OwnChunkLocked(it->first).data() + (part.offset - chunk.offset), 0, part.length);
    ++it;
  }
}

// The chunk, made if need be, and copied if a clone has it, too.
MemoryStore::Chunk& MemoryStore::OwnChunkLocked(uint64_t index) {
  std::shared_ptr<Chunk>& chunk = chunks_[index];
  if (!chunk) {
    chunk = std::make_shared<Chunk>(kChunk);
  } else if (chunk.use_count() > 1) {
    chunk = std::make_shared<Chunk>(*chunk);
  }
  return *chunk;
}

}  // namespace platter
