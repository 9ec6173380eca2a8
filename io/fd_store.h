// FdStore: what a regular file and a block device have in common as stores.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "io/fd_io.h"
#include "io/open_path.h"
#include "io/store.h"

namespace platter {

struct FileStoreOptions {
  bool writable = false;
  bool direct = false;       // O_DIRECT: past the page cache
  bool lock = true;          // hold and respect the image lock (io/file_lock.h)
  bool force_share = false;  // read-only: read in spite of another program's write lock
  PathRules path;            // for those that open one
};

class FdStore : public Store {
 public:
  const std::string& name() const final { return io_.name(); }
  bool writable() const final { return writable_; }
  Result<uint64_t> Size() const final { return io_.FileSize(); }
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) final { return io_.Read(at, into); }
  Result<> Write(uint64_t at, std::span<const iovec> from) final;
  Result<> Sync() final { return io_.Sync(); }
  size_t TryRead(uint64_t at, std::span<const iovec> into) final { return io_.TryRead(at, into); }
  // -1 with O_DIRECT: splices and rings would have to know the alignment.
  int fd() const final { return io_.direct() ? -1 : io_.fd(); }

 protected:
  // `device_size` as FdIo's.
  FdStore(Fd fd, std::string name, FdIo::Direct alignment, std::optional<uint64_t> device_size,
          bool writable)
      : io_(std::move(fd), std::move(name), alignment, device_size), writable_(writable) {}

  // The image lock that `options` ask for, on an open file: kRefused if another program's is in the
  // way.
  static Result<> TakeLock(int fd, const FileStoreOptions& options, const std::string& name);

  // kReadOnly unless opened for writing.
  Result<> CheckWritable() const;

  FdIo io_;

 private:
  const bool writable_;
};

}  // namespace platter
