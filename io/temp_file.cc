#include "io/temp_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "base/bytes.h"

namespace platter {
namespace {

std::string TempRoot() {
  const char* given = std::getenv("TMPDIR");
  return given && *given ? given : "/var/tmp";
}

}  // namespace

Result<std::string> MakeTempFolder() {
  const std::string root = TempRoot();
  std::string name = root + "/platter-XXXXXX";
  if (mkdtemp(name.data()) != nullptr) return name;
  return FailErrno(errno, "making a temporary folder in '{}' (TMPDIR)", Printable(root));
}

Result<Fd> OpenTempFile() {
  const std::string folder = TempRoot();
  Fd fd(open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (fd) return fd;
  // A file system that has no nameless files.
  if (errno == EOPNOTSUPP || errno == EISDIR) {
    std::string name = folder + "/platter-XXXXXX";
    Fd named(mkostemp(name.data(), O_CLOEXEC));
    if (named) {
      unlink(name.c_str());
      return named;
    }
  }
  return FailErrno(errno, "making a temporary file in '{}' (TMPDIR)", Printable(folder));
}

}  // namespace platter
