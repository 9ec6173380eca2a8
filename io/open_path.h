// From a path to a descriptor, when whoever controls the folders on the way may be changing them.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "io/fd.h"

namespace platter {

// A file whatever it is called: two names are one file if these are equal.
struct FileId {
  uint64_t device = 0, inode = 0;
  friend auto operator<=>(const FileId&, const FileId&) = default;
};
// Of an open file. kIo.
Result<FileId> IdentifyFile(const Fd& fd);

// What was found out about a path before it is opened, and has to hold still.
struct PathRules {
  // The path is absolute and was found to be free of symbolic links: one that is there now was put
  // there since, to lead elsewhere. kRefused.
  bool no_links = false;
  // The file that it leads to; kRefused where it is another by now.
  std::optional<FileId> must_be;
};

// open(2), with O_CLOEXEC. kIo with open's errno, kRefused. With no_links and O_PATH the last part
// may be a link, which is opened itself: the caller looks at what it got.
Result<Fd> OpenPath(const std::string& path, int flags, const PathRules& rules);

}  // namespace platter
