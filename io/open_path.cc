#include "io/open_path.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <climits>
#include <string_view>

#include "base/bytes.h"

namespace platter {
namespace {

// Folder by folder, so that no kernel is too old for it (openat2 came with 5.6).
Fd OpenWithoutLinks(std::string_view path, int flags) {
  Fd folder(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  while (folder) {
    path.remove_prefix(std::min(path.find_first_not_of('/'), path.size()));
    const size_t slash = std::min(path.find('/'), path.size());
    const std::string part(path.substr(0, slash));
    const bool last = path.find_first_not_of('/', slash) == path.npos;
    int how = last ? flags : O_PATH | O_DIRECTORY;
    Fd next(openat(folder.get(), part.empty() ? "." : part.c_str(), how | O_NOFOLLOW | O_CLOEXEC));
    if (last) return next;
    folder = std::move(next);
    path.remove_prefix(slash);
  }
  return folder;
}

}  // namespace

Result<FileId> IdentifyFile(const Fd& fd) {
  struct stat status;
  if (fstat(fd.get(), &status) != 0) return FailErrno(errno, "fstat");
  // Two nodes of one device are one file.
  if (S_ISBLK(status.st_mode)) return FileId{~uint64_t{0}, status.st_rdev};
  return FileId{status.st_dev, status.st_ino};
}

Result<Fd> OpenPath(const std::string& path, int flags, const PathRules& rules) {
  Fd fd =
      rules.no_links ? OpenWithoutLinks(path, flags) : Fd(open(path.c_str(), flags | O_CLOEXEC));
  // ELOOP for a link at the end, ENOTDIR for one on the way.
  if (!fd && rules.no_links && (errno == ELOOP || errno == ENOTDIR)) {
    return Fail(Code::kRefused,
                "cannot open '{}': a part of it has become a symbolic link since it was looked up",
                Printable(path, PATH_MAX));
  }
  if (!fd) return FailErrno(errno, "cannot open '{}'", Printable(path, PATH_MAX));
  if (rules.must_be && TRY(IdentifyFile(fd)) != *rules.must_be) {
    return Fail(Code::kRefused,
                "cannot open '{}': it has become another file since it was looked up",
                Printable(path, PATH_MAX));
  }
  return fd;
}

}  // namespace platter
