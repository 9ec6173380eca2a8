#include "io/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/bytes.h"
#include "base/sync.h"
#include "io/block_store.h"

namespace platter {

// Looks before it opens: to open a FIFO would wait, to open a character device may do things.
Result<std::unique_ptr<Store>> OpenFileStore(const std::string& path,
                                             const FileStoreOptions& options) {
  struct stat status;
  if (path.find('\0') != std::string::npos) {
    return Fail(Code::kRefused, "cannot open '{}': a NUL byte in the name", Printable(path));
  }
  Fd found = TRY(OpenPath(path, O_PATH, options.path));
  if (fstat(found.get(), &status) != 0) {
    return FailErrno(errno, "cannot open '{}'", Printable(path));
  }
  sched::Yield("open file");
  const char* what = nullptr;
  switch (status.st_mode & S_IFMT) {
    case S_IFREG: return TRY(FileStore::Open(path, options));
    case S_IFBLK: return TRY(BlockStore::Open(path, options));
    case S_IFDIR: what = "a directory"; break;
    case S_IFIFO: what = "a pipe"; break;
    case S_IFSOCK: what = "a socket"; break;
    case S_IFCHR: what = "a character device"; break;
    case S_IFLNK: what = "a symbolic link"; break;
    default: what = "of an unknown kind"; break;
  }
  return Fail(Code::kRefused, "'{}' is {}: an image is a regular file or a block device",
              Printable(path), what);
}

}  // namespace platter
