// The one door from a path to a store.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "io/file_store.h"
#include "io/store.h"

namespace platter {

// A FileStore or BlockStore, by what `path` is (symbolic links are followed unless options.path
// says otherwise), with the image lock taken. kIo (no such file, no permission ...), kRefused
// (locked by another program, mounted; a directory, FIFO, socket or character device; contrary to
// options.path).
Result<std::unique_ptr<Store>> OpenFileStore(const std::string& path,
                                             const FileStoreOptions& options);

}  // namespace platter
