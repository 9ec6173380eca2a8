#include "tools/resume.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/bytes.h"
#include "base/size.h"
#include "io/codec/hash.h"
#include "io/fd.h"
#include "io/file_lock.h"

namespace platter {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTitle = "platter convert journal 1\n";

// The whole file ends with its own digest, so that a torn one is none.
std::string Seal(std::string text) {
  return text + "sha256 " + Hex(Sha256::Of(AsBytes(std::string_view(text)))) + "\n";
}

Result<> SyncFile(const std::string& path, int flags) {
  Fd fd(open(path.c_str(), flags | O_CLOEXEC));
  if (!fd || (fsync(fd.get()) != 0 && errno != EINVAL)) {
    return FailErrno(errno, "'{}': sync", Printable(path, PATH_MAX));
  }
  return {};
}

Result<> SyncFolderOf(const std::string& path) {
  return SyncFile(fs::absolute(path).parent_path().string(), O_RDONLY | O_DIRECTORY);
}

}  // namespace

PartialOutput PartialOutput::For(const std::string& path) {
  const fs::path whole(path);
  const std::string name = "." + whole.filename().string().substr(0, 220) + ".platter-";
  return {(whole.parent_path() / (name + "partial")).string(),
          (whole.parent_path() / (name + "journal")).string()};
}

Result<std::optional<uint64_t>> Journal::Load() const {
  std::ifstream file(files_.journal, std::ios::binary);
  if (!file.is_open()) return std::optional<uint64_t>();
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t seal = text.rfind("sha256 ");
  if (seal == text.npos || Seal(text.substr(0, seal)) != text) return std::optional<uint64_t>();
  const std::string begin = std::string(kTitle) + what_ + "bytes ";
  if (!text.starts_with(begin)) {
    return Fail(Code::kRefused,
                "'{}' is of another conversion, or its source was changed since: remove it, and "
                "'{}', to begin again",
                Printable(files_.journal, PATH_MAX), Printable(files_.image, PATH_MAX));
  }
  return std::optional<uint64_t>(
      TRY(ParseSize(std::string_view(text).substr(begin.size(), seal - 1 - begin.size()))));
}

Result<> Journal::Save(uint64_t bytes) const {
  const std::string text = Seal(fmt::format("{}{}bytes {}\n", kTitle, what_, bytes));
  const std::string next = files_.journal + "-next";
  {
    std::ofstream file(next, std::ios::binary | std::ios::trunc);
    file << text;
    if (!file.flush()) return FailErrno(errno, "'{}'", Printable(next, PATH_MAX));
  }
  TRY(SyncFile(next, O_RDONLY));
  if (rename(next.c_str(), files_.journal.c_str()) != 0) {
    return FailErrno(errno, "'{}'", Printable(files_.journal, PATH_MAX));
  }
  return SyncFolderOf(files_.journal);
}

void Journal::Remove() const {
  unlink(files_.journal.c_str());
  unlink((files_.journal + "-next").c_str());
}

Result<std::string> DescribeSource(const std::string& path, bool devices) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return FailErrno(errno, "'{}'", Printable(path, PATH_MAX));
  if (!devices && !S_ISREG(status.st_mode)) {
    return Fail(Code::kRefused,
                "--resume: '{}' is not a regular file, and nothing tells whether it was changed "
                "in between: add --verify",
                Printable(path, PATH_MAX));
  }
  return fmt::format("source {} size {} device {} inode {} changed {}.{:09}\n",
                     Printable(path, PATH_MAX), status.st_size, status.st_dev, status.st_ino,
                     status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
}

Result<OldOutput> OldOutput::Hold(const std::string& path, bool replace) {
  OldOutput old;
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) {
    old.path_ = path;
    return old;
  }
  const std::string what = Printable(path, PATH_MAX);
  if (!replace) return Fail(Code::kRefused, "'{}' exists already (--force replaces it)", what);
  std::error_code error;
  old.path_ = fs::canonical(path, error).string();
  if (error) return FailErrno(error.value(), "cannot replace '{}'", what);
  old.file_ = Fd(open(old.path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!old.file_ || fstat(old.file_.get(), &status) != 0) {
    return FailErrno(errno, "cannot replace '{}'", what);
  }
  if (!S_ISREG(status.st_mode)) {
    return Fail(Code::kUnsupported, "--resume makes a regular file, and '{}' is none", what);
  }
  TRY(LockImage(old.file_.get(), LockMode::kWriter, what));
  return old;
}

Result<> OldOutput::GiveWay(const PartialOutput& files) const {
  struct stat status;
  if (file_ && fstat(file_.get(), &status) == 0) {
    // As AtomicFile: who may not give files away keeps this one.
    (void)!chown(files.image.c_str(), status.st_uid, status.st_gid);
    (void)!chmod(files.image.c_str(), status.st_mode & 07777);
  }
  TRY(SyncFile(files.image, O_RDONLY));
  const int failed =
      file_ ? rename(files.image.c_str(), path_.c_str())
            : renameat2(AT_FDCWD, files.image.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE);
  if (failed != 0 && errno == EEXIST) {
    return Fail(Code::kRefused, "'{}' exists by now", Printable(path_, PATH_MAX));
  }
  if (failed != 0) return FailErrno(errno, "cannot rename to '{}'", Printable(path_, PATH_MAX));
  return SyncFolderOf(path_);
}

}  // namespace platter
