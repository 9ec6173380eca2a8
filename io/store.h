// Store: where bytes live. The leaf under every image: a file, a block device, memory, a window
// of another store, an NBD export, or a fault-injecting wrapper of one of them.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <string>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"

namespace platter {

// Thread rule for every call: any thread, any number at once. Concurrent writes to the same bytes
// leave either; everything else is independent.
class Store {
 public:
  struct Caps {
    uint32_t align = 1;         // bytes: requests off this alignment work but are slower
    uint32_t preferred = 0;     // bytes: a good size for one request; 0: no opinion
    bool punch = false;         // Zero(range, may_unmap) can give space back
    bool reflink = false;       // copy_file_range shares blocks instead of copying
    bool block_device = false;  // fixed size; contents exist before creation
  };

  virtual ~Store() = default;

  virtual Caps caps() const = 0;

  // How messages name this store: a path or an address, made printable.
  virtual const std::string& name() const = 0;

  virtual bool writable() const = 0;

  // Bytes. Grows when a write goes past the end.
  virtual Result<uint64_t> Size() const = 0;

  // Fills all of `into` from `at`. A read that reaches past the end of the store is an error
  // (kCorrupt: a structure names bytes that are not there).
  virtual Result<> Read(uint64_t at, std::span<const iovec> into) = 0;

  // Writes all of `from` at `at`, growing the store where needed. On error any subset of the
  // bytes may have been written.
  virtual Result<> Write(uint64_t at, std::span<const iovec> from) = 0;

  // The range reads as zeros afterwards. `may_unmap`: space may be given back; otherwise it stays
  // allocated where the store knows the difference. May grow the store.
  virtual Result<> Zero(Range range, bool may_unmap) = 0;

  // Everything written before the call is on stable storage after it. Nothing else is ordered.
  virtual Result<> Sync() = 0;

  // Cuts or grows to `size` bytes; new bytes read as zeros. kUnsupported where the size is fixed.
  virtual Result<> Resize(uint64_t size) = 0;

  // Allocates backing space for the range without changing what it reads as (falloc).
  // kUnsupported where the store has no such thing.
  virtual Result<> Allocate(Range range) = 0;

  // The run that starts at `at` and is all data or all hole, as far as is known without reading:
  // length >= 1, not past the end of the store. A store that cannot tell says data. `at` < Size().
  struct Run {
    uint64_t length;
    bool data;
  };
  virtual Result<Run> FindRun(uint64_t at) = 0;

  // A prefix that can be served without waiting for a device or a peer; 0 is always a right
  // answer. Never fails: what went wrong shows when Read is called.
  virtual size_t TryRead(uint64_t at, std::span<const iovec> into) {
    (void)at, (void)into;
    return 0;
  }

  // >= 0: a file descriptor with the same bytes at fd_offset() + at, for splice, copy_file_range
  // and ring batches. Owned by the store.
  virtual int fd() const { return -1; }
  virtual uint64_t fd_offset() const { return 0; }

  // The whole range is about to be written: a store that can make room for much at once more
  // cheaply than piece by piece does so. A hint, which changes nothing that can be read.
  virtual void Expect(Range range) { (void)range; }

  // One span instead of a vector.
  Result<> Read(uint64_t at, Bytes into) {
    iovec one{into.data(), into.size()};
    return Read(at, std::span<const iovec>(&one, 1));
  }
  Result<> Write(uint64_t at, ConstBytes from) {
    iovec one{const_cast<std::byte*>(from.data()), from.size()};
    return Write(at, std::span<const iovec>(&one, 1));
  }
};

}  // namespace platter
