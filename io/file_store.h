// FileStore: a regular file.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "io/fd_io.h"
#include "io/large_pages.h"
#include "io/store.h"

namespace platter {

struct FileStoreOptions {
  bool writable = false;
  bool direct = false;       // O_DIRECT: past the page cache
  bool lock = true;          // hold and respect the image lock (io/file_lock.h)
  bool force_share = false;  // read-only: read in spite of another program's write lock
};

class FileStore final : public Store {
 public:
  // An existing regular file. All three take the image lock (kRefused) unless options.lock is off.
  static Result<std::unique_ptr<FileStore>> Open(const std::string& path,
                                                 const FileStoreOptions& options);

  // A new, empty, writable file. kRefused if the name exists.
  static Result<std::unique_ptr<FileStore>> Create(const std::string& path,
                                                   const FileStoreOptions& options = {});

  // Takes over an open descriptor of a regular file; `name` is what messages call it.
  static Result<std::unique_ptr<FileStore>> FromFd(Fd fd, const std::string& name,
                                                   const FileStoreOptions& options);

  Caps caps() const override;
  const std::string& name() const override { return io_.name(); }
  bool writable() const override { return writable_; }
  Result<uint64_t> Size() const override { return io_.FileSize(); }
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override { return io_.Read(at, into); }
  Result<> Write(uint64_t at, std::span<const iovec> from) override;
  Result<> Zero(Range range, bool may_unmap) override;
  Result<> Sync() override { return io_.Sync(); }
  Result<> Resize(uint64_t size) override;
  // Makes the file reach the end of `range`, too.
  Result<> Allocate(Range range) override;
  void Expect(Range range) override;
  Result<Run> FindRun(uint64_t at) override;
  size_t TryRead(uint64_t at, std::span<const iovec> into) override {
    return io_.TryRead(at, into);
  }
  // -1 with O_DIRECT: splices and rings would have to know the alignment.
  int fd() const override { return io_.direct() ? -1 : io_.fd(); }

 private:
  FileStore(Fd fd, std::string name, FdIo::Direct alignment, bool writable);
  Result<> CheckWritable() const;
  Result<> GrowTo(uint64_t size);
  int Fallocate(int mode, Range range);

  FdIo io_;
  LargePages large_pages_;
  const bool writable_;
  const bool reflink_;
  // What the file system has turned out not to support is not asked for again.
  std::atomic<bool> punch_;
  std::atomic<bool> zero_range_{true};
};

}  // namespace platter
