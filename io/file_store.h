// FileStore: a regular file.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "io/fd_store.h"

namespace platter {

class FileStore final : public FdStore {
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
  Result<> Zero(Range range, bool may_unmap) override;
  Result<> Resize(uint64_t size) override;
  // Makes the file reach the end of `range`, too.
  Result<> Allocate(Range range) override;
  Result<Run> FindRun(uint64_t at) override;

 private:
  FileStore(Fd fd, std::string name, FdIo::Direct alignment, bool writable);
  Result<> GrowTo(uint64_t size);
  int Fallocate(int mode, Range range);

  const bool reflink_;
  // What the file system has turned out not to support is not asked for again.
  std::atomic<bool> punch_;
  std::atomic<bool> zero_range_{true};
};

}  // namespace platter
