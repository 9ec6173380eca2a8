// MemoryStore: a store in memory, for tests and fuzzers. Sparse: what was never written costs
// nothing, so that a store of 64 TiB is cheap; copies share what neither has changed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/sync.h"
#include "io/store.h"

namespace platter {

class MemoryStore final : public Store {
 public:
  struct Options {
    std::string name = "memory";
    bool writable = true;
    bool fixed_size = false;  // as a block device: writes past the end are kNoSpace
  };

  MemoryStore() : MemoryStore(0) {}
  explicit MemoryStore(uint64_t size) : MemoryStore(size, Options{}) {}
  MemoryStore(uint64_t size, Options options);
  MemoryStore(ConstBytes contents, Options options);
  explicit MemoryStore(ConstBytes contents) : MemoryStore(contents, Options{}) {}

  // The same contents and options; cheap. Not while other threads use this store.
  std::unique_ptr<MemoryStore> Clone() const;

  // All bytes, for comparisons: only for small stores.
  std::vector<std::byte> Contents() const;

  // Bytes of memory that hold data.
  uint64_t allocated() const;

  Caps caps() const override;
  const std::string& name() const override { return options_.name; }
  bool writable() const override { return options_.writable; }
  Result<uint64_t> Size() const override;
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override;
  Result<> Write(uint64_t at, std::span<const iovec> from) override;
  Result<> Zero(Range range, bool may_unmap) override;
  Result<> Sync() override;
  Result<> Resize(uint64_t size) override;
  Result<> Allocate(Range range) override;
  Result<Run> FindRun(uint64_t at) override;
  // Everything within the size: memory never waits.
  size_t TryRead(uint64_t at, std::span<const iovec> into) override;

 private:
  static constexpr size_t kChunk = 64 * kKiB;
  using Chunk = std::vector<std::byte>;

  Result<> CheckRange(Range range) const;
  Result<> GrowLocked(uint64_t size);
  void CopyOutLocked(uint64_t at, Bytes into) const;
  void CopyInLocked(uint64_t at, ConstBytes from);
  void ZeroLocked(Range range, bool drop);
  Chunk& OwnChunkLocked(uint64_t index);

  const Options options_;
  mutable Mutex mutex_;  // guards everything below; a leaf
  uint64_t size_ = 0;
  // By number; a missing one is all zeros. Shared with clones until somebody writes.
  std::map<uint64_t, std::shared_ptr<Chunk>> chunks_;
};

}  // namespace platter
