#include "io/temp_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "base/bytes.h"

namespace platter {

Result<Fd> OpenTempFile() {
  const char* given = std::getenv("TMPDIR");
  const std::string folder = given && *given ? given : "/var/tmp";
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
