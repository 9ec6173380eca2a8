// FdIo: whole vectored transfers on a file descriptor, for regular files and block devices.
//
// With O_DIRECT the kernel takes only requests whose offset, length and memory are aligned. Others
// go through an aligned buffer here, and a write that covers part of a sector reads the sector
// first, changes it and writes it back. Two such writes to one sector, or one and an aligned write,
// would lose an update; so in direct mode every write holds the sectors it touches in a RangeLock.
// A partial write to the last sector of a file makes the file longer for a moment and then cuts it
// again: it holds everything from there to the end of the world, and so does Size wait for it.
// Without O_DIRECT none of these locks is taken: the page cache does this work.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/range.h"
#include "base/result.h"
#include "io/buffer.h"
#include "io/fd.h"
#include "io/range_lock.h"

namespace platter {

class FdIo {
 public:
  struct Direct {
    uint32_t offset = 0;  // bytes: alignment of offsets and lengths; 0: not O_DIRECT
    uint32_t memory = 0;  // bytes: alignment of addresses
  };

  // `device_size`, bytes: of a block device, which writes never make longer.
  FdIo(Fd fd, std::string name, Direct alignment, std::optional<uint64_t> device_size);

  int fd() const { return fd_.get(); }
  const std::string& name() const { return name_; }
  bool direct() const { return direct_.offset != 0; }
  uint32_t align() const { return direct() ? direct_.offset : 1; }

  // As Store's. Any thread, any number at once.
  Result<> Read(uint64_t at, std::span<const iovec> into);
  Result<> Write(uint64_t at, std::span<const iovec> from);
  Result<> WriteZeros(Range range);
  Result<> Sync();
  size_t TryRead(uint64_t at, std::span<const iovec> into);

  // Bytes.
  Result<uint64_t> FileSize() const;

  // Keeps direct-mode writes that touch these sectors away; empty without O_DIRECT. For other ways
  // of changing bytes (fallocate, ftruncate).
  RangeLock::Guard Exclude(Range range) const;
  static constexpr Range kEverything{0, uint64_t{1} << 63};

 private:
  bool Fits(uint64_t at, std::span<const iovec> iov) const;
  Result<> ReadPlain(uint64_t at, std::span<const iovec> into);
  Result<> WritePlain(uint64_t at, std::span<const iovec> from);
  Result<> ReadBounced(uint64_t at, std::span<const iovec> into);
  Result<> WriteBounced(uint64_t at, std::span<const iovec> from);
  Result<> WriteSectors(Range sectors, Range part, std::span<const iovec> from, uint64_t skip,
                        Buffer& buffer);
  Result<size_t> ReadUpTo(uint64_t at, Bytes into);
  std::unexpected<Error> PastEnd(uint64_t at, uint64_t length) const;
  std::unexpected<Error> Failed(const char* verb, int error, uint64_t at, uint64_t length) const;

  const Fd fd_;
  const std::string name_;
  const Direct direct_;
  const std::optional<uint64_t> device_size_;
  // Of sectors being written in direct mode. Rank: below every lock of a format; held across the
  // write, since it is the write that must not be interleaved.
  mutable RangeLock sectors_;
  int try_flags_ = RWF_NOWAIT;        // 0 on tmpfs, which never waits and may not know the flag
  std::atomic<bool> may_try_{true};   // this file understands the flag
  std::atomic<int> sync_failure_{0};  // errno of the first Sync that failed
};

}  // namespace platter
