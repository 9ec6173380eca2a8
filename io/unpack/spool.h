// Spool: the temporary file that holds what has been unpacked. Private to io/unpack.
#pragma once

#include <memory>

#include "io/file_store.h"

namespace platter::internal {

class Spool {
 public:
  // `name`: of the packed file, for messages.
  static Result<Spool> Open(const std::string& name);

  // Writes `bytes` at `at` where nothing was written yet. Pages of zeros become holes; the caller
  // sees to the file's length.
  Result<> Put(uint64_t at, ConstBytes bytes);

  FileStore& file() { return *file_; }

 private:
  explicit Spool(std::unique_ptr<FileStore> file) : file_(std::move(file)) {}
  std::unique_ptr<FileStore> file_;
};

}  // namespace platter::internal
