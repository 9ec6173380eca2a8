// BlockStore: a block device. Its size is fixed; what it holds before it is written is anybody's.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "io/fd_store.h"

namespace platter {

class BlockStore final : public FdStore {
 public:
  // Takes the image lock and, for writing, claims the device from the kernel (unless
  // options.lock is off): kRefused if it is mounted or in use by another program.
  static Result<std::unique_ptr<BlockStore>> Open(const std::string& path,
                                                  const FileStoreOptions& options);

  // Bytes of a logical sector: 512 or 4096.
  uint32_t sector() const { return sector_; }

  Caps caps() const override;
  // Never by BLKDISCARD, which promises nothing about what is read after it.
  Result<> Zero(Range range, bool may_unmap) override;
  // Only to the size it has.
  Result<> Resize(uint64_t size) override;
  Result<> Allocate(Range range) override;
  // A device does not tell: all data.
  Result<Run> FindRun(uint64_t at) override;

 private:
  BlockStore(Fd fd, std::string name, uint64_t size, uint32_t sector,
             const FileStoreOptions& options);
  bool ZeroSectors(Range sectors, bool may_unmap);

  const uint64_t size_;
  const uint32_t sector_;
  // What the device has turned out not to support is not asked for again.
  std::atomic<bool> punch_, zero_range_{true}, zero_out_{true};
};

}  // namespace platter
