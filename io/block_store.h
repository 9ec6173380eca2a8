// BlockStore: a block device. Its size is fixed; what it holds before it is written is anybody's.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "io/fd_io.h"
#include "io/file_store.h"
#include "io/store.h"

namespace platter {

class BlockStore final : public Store {
 public:
  // Takes the image lock and, for writing, claims the device from the kernel (unless
  // options.lock is off): kRefused if it is mounted or in use by another program.
  static Result<std::unique_ptr<BlockStore>> Open(const std::string& path,
                                                  const FileStoreOptions& options);

  // Bytes of a logical sector: 512 or 4096.
  uint32_t sector() const { return sector_; }

  Caps caps() const override;
  const std::string& name() const override { return io_.name(); }
  bool writable() const override { return writable_; }
  Result<uint64_t> Size() const override { return io_.FileSize(); }
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override { return io_.Read(at, into); }
  Result<> Write(uint64_t at, std::span<const iovec> from) override;
  // Never by BLKDISCARD, which promises nothing about what is read after it.
  Result<> Zero(Range range, bool may_unmap) override;
  Result<> Sync() override { return io_.Sync(); }
  // Only to the size it has.
  Result<> Resize(uint64_t size) override;
  Result<> Allocate(Range range) override;
  // A device does not tell: all data.
  Result<Run> FindRun(uint64_t at) override;
  size_t TryRead(uint64_t at, std::span<const iovec> into) override {
    return io_.TryRead(at, into);
  }
  int fd() const override { return io_.direct() ? -1 : io_.fd(); }

 private:
  BlockStore(Fd fd, std::string name, uint64_t size, uint32_t sector,
             const FileStoreOptions& options);
  Result<> CheckWritable() const;
  bool ZeroSectors(Range sectors, bool may_unmap);

  FdIo io_;
  const uint64_t size_;
  const uint32_t sector_;
  const bool writable_;
  // What the device has turned out not to support is not asked for again.
  std::atomic<bool> punch_, zero_range_{true}, zero_out_{true};
};

}  // namespace platter
