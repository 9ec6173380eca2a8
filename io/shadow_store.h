// ShadowStore: another store as it would be after writes that it never sees. They are kept in
// memory: what a repair would do, before anybody lets it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/sync.h"
#include "io/store.h"

namespace platter {

class ShadowStore final : public Store {
 public:
  // `base` outlives it and is not changed by anybody meanwhile; it may be open for reading only.
  // At most `most` bytes of writes are kept, then they are kNoSpace.
  static Result<std::unique_ptr<ShadowStore>> Over(Store& base, uint64_t most);

  // Written bytes that differ from the base's, by sectors of 512, ascending and apart.
  Result<std::vector<Range>> Changed() const;
  // Bytes of the base from here on were cut off, whatever the size is now.
  uint64_t cut_at() const;

  Caps caps() const override;
  const std::string& name() const override { return base_.name(); }
  bool writable() const override { return true; }
  Result<uint64_t> Size() const override;
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override;
  Result<> Write(uint64_t at, std::span<const iovec> from) override;
  Result<> Zero(Range range, bool may_unmap) override;
  Result<> Sync() override { return {}; }
  Result<> Resize(uint64_t size) override;
  Result<> Allocate(Range range) override;
  Result<Run> FindRun(uint64_t at) override;

 private:
  static constexpr uint64_t kPage = 4096;  // bytes

  ShadowStore(Store& base, uint64_t size, uint64_t most)
      : base_(base), most_(most), size_(size), base_end_(size) {}
  Result<std::vector<std::byte>*> PageLocked(uint64_t index);
  Result<> ReadBase(uint64_t at, Bytes into) const;
  Result<> PutLocked(uint64_t at, ConstBytes from);
  Result<Run> RunLocked(uint64_t at);

  Store& base_;
  const uint64_t most_;
  mutable Mutex mutex_;  // guards everything below, and is held while the base is read; a leaf
  uint64_t size_;
  uint64_t base_end_;  // bytes of the base that show: it was never cut to less
  // By number. Empty: zeros, of which nothing need be kept.
  std::map<uint64_t, std::vector<std::byte>> pages_;
};

}  // namespace platter
