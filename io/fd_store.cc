#include "io/fd_store.h"

#include "io/file_lock.h"

namespace platter {

Result<> FdStore::TakeLock(int fd, const FileStoreOptions& options, const std::string& name) {
  if (!options.lock) return {};
  LockMode mode = options.writable      ? LockMode::kWriter
                  : options.force_share ? LockMode::kSharedReader
                                        : LockMode::kReader;
  return LockImage(fd, mode, name);
}

Result<> FdStore::CheckWritable() const {
  if (writable_) return {};
  return Fail(Code::kReadOnly, "'{}' is open for reading only", name());
}

Result<> FdStore::Write(uint64_t at, std::span<const iovec> from) {
  TRY(CheckWritable());
  return io_.Write(at, from);
}

}  // namespace platter
