#include "io/atomic_file.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "io/file_lock.h"
#include "io/file_store.h"

namespace platter {
namespace {

// What a signal handler may look at: fixed memory, and one atomic that says whether it is whole.
struct Slot {
  enum State : int { kFree, kBeingFilled, kArmed };
  std::atomic<int> state{kFree};
  pid_t process = 0;  // a forked child must not remove its parent's files
  char path[PATH_MAX];
};
std::array<Slot, 32> slots;

// The slot's number, or -1 where all are taken: such a file is still removed by its destructor.
int Arm(const std::string& path) {
  if (path.size() >= sizeof slots[0].path) return -1;
  for (size_t i = 0; i < slots.size(); ++i) {
    int expected = Slot::kFree;
    if (!slots[i].state.compare_exchange_strong(expected, Slot::kBeingFilled)) continue;
    slots[i].process = getpid();
    std::memcpy(slots[i].path, path.c_str(), path.size() + 1);
    slots[i].state = Slot::kArmed;
    return static_cast<int>(i);
  }
  return -1;
}

void Disarm(int slot) {
  if (slot >= 0) slots[static_cast<size_t>(slot)].state = Slot::kFree;
}

std::string RandomSuffix() {
  static constexpr char kLetters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
  std::array<unsigned char, 6> bytes{};
  CHECK(getrandom(bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  std::string suffix;
  for (unsigned char byte : bytes) suffix += kLetters[byte % (sizeof kLetters - 1)];
  return suffix;
}

void OnSignal(int signal) {
  UnlinkTemporaries();
  raise(signal);  // SA_RESETHAND: ends the process once this handler returns
}

}  // namespace

void UnlinkTemporaries() noexcept {
  int error = errno;
  for (Slot& slot : slots) {
    if (slot.state == Slot::kArmed && slot.process == getpid()) unlink(slot.path);
  }
  errno = error;
}

void UnlinkTemporariesOnSignals() {
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action{};
    if (sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_handler = OnSignal;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigemptyset(&action.sa_mask);
    sigaction(signal, &action, nullptr);
  }
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      final_(std::move(other.final_)),
      temporary_(std::exchange(other.temporary_, std::string())),
      replace_(other.replace_),
      slot_(std::exchange(other.slot_, -1)),
      old_(std::move(other.old_)),
      file_(std::move(other.file_)),
      store_(std::move(other.store_)) {}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
  Disarm(slot_);
}

Result<AtomicFile> AtomicFile::Create(const std::string& path, const Options& options) {
  AtomicFile file;
  file.path_ = path;
  file.replace_ = options.replace;
  std::error_code error;
  // Absolute: the working directory may change before a signal comes.
  std::filesystem::path whole = std::filesystem::absolute(path, error);
  struct stat status;
  const bool exists = lstat(path.c_str(), &status) == 0;
  if (exists) {
    if (!options.replace)
      return Fail(Code::kRefused, "'{}' exists already (--force replaces it)", Printable(path));
    whole = std::filesystem::canonical(path, error);
  }
  if (error) return FailErrno(error.value(), "cannot create '{}'", Printable(path));
  if (!whole.has_filename()) {
    return Fail(Code::kRefused, "cannot create '{}': that is no file name", Printable(path));
  }
  file.final_ = whole.string();
  if (exists) TRY(file.HoldOld());
  TRY(file.CreateTemporary(options));
  return file;
}

// A program that has the old file open would go on with a file that has no name any more.
Result<> AtomicFile::HoldOld() {
  struct stat status;
  if (stat(final_.c_str(), &status) != 0) {
    return FailErrno(errno, "cannot replace '{}'", Printable(path_));
  }
  if (!S_ISREG(status.st_mode)) {
    return Fail(Code::kRefused, "cannot replace '{}': it is not a regular file", Printable(path_));
  }
  old_ = Fd(open(final_.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!old_) return {};  // a file that may not be read may still be replaced
  return LockImage(old_.get(), LockMode::kWriter, Printable(path_));
}

Result<> AtomicFile::CreateTemporary(const Options& options) {
  const std::filesystem::path whole(final_);
  // Names are at most 255 bytes.
  const std::string prefix = "." + whole.filename().string().substr(0, 220) + ".platter-";
  Fd fd;
  for (int attempt = 0; !fd && attempt < 100; ++attempt) {
    std::string name = (whole.parent_path() / (prefix + RandomSuffix())).string();
    int slot = Arm(name);
    int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY | (options.direct ? O_DIRECT : 0);
    fd = Fd(open(name.c_str(), flags, 0666));
    if (fd) {
      temporary_ = std::move(name);
      slot_ = slot;
      break;
    }
    int error = errno;
    Disarm(slot);
    if (error == EEXIST) continue;
    // A file system without O_DIRECT may have made the file before it refused to open it.
    if (error == EINVAL && options.direct) {
      unlink(name.c_str());
      return Fail(Code::kUnsupported, "'{}': its file system does not do O_DIRECT (--cache none)",
                  Printable(path_));
    }
    return FailErrno(error, "cannot create '{}'", Printable(path_));
  }
  if (!fd) return FailErrno(EEXIST, "cannot create a temporary file for '{}'", Printable(path_));
  struct stat old;
  if (old_ && fstat(old_.get(), &old) == 0) {
    // Who may not give files away keeps this one. The owner first: that clears bits of the mode.
    (void)!fchown(fd.get(), old.st_uid, old.st_gid);
    (void)!fchmod(fd.get(), old.st_mode & 07777);
  }
  file_ = Fd(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!file_) return FailErrno(errno, "cannot create '{}'", Printable(path_));
  store_ =
      TRY(FileStore::FromFd(std::move(fd), path_, {.writable = true, .direct = options.direct}));
  return {};
}

std::unique_ptr<Store> AtomicFile::TakeStore() {
  CHECK(store_ != nullptr);
  return std::move(store_);
}

Result<> AtomicFile::DropOld() {
  if (!replace_ || unlink(final_.c_str()) == 0 || errno == ENOENT) return {};
  return FailErrno(errno, "cannot replace '{}'", Printable(path_));
}

Result<> AtomicFile::Commit() {
  CHECK(file_ && !temporary_.empty());
  if (fsync(file_.get()) != 0) return FailErrno(errno, "'{}': sync", Printable(path_));
  TRY(Rename());
  temporary_.clear();
  Disarm(slot_);  // after the rename: before it a signal would leave the temporary file
  slot_ = -1;
  old_ = Fd();
  file_ = Fd();
  return SyncDirectory();
}

Result<> AtomicFile::Rename() {
  const char* from = temporary_.c_str();
  const char* to = final_.c_str();
  auto exists = [&] { return Fail(Code::kRefused, "'{}' exists by now", Printable(path_)); };
  if (!replace_) {
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) return {};
    if (errno == EEXIST) return exists();
    if (errno != EINVAL && errno != ENOSYS) {
      return FailErrno(errno, "cannot rename a temporary file to '{}'", Printable(path_));
    }
    // The file system does not know the flag. A second name cannot replace anything, either.
    if (link(from, to) == 0) {
      unlink(from);
      return {};
    }
    if (errno == EEXIST) return exists();
    struct stat status;
    if (lstat(to, &status) == 0) return exists();  // no second names there: the best that is left
  }
  if (rename(from, to) == 0) return {};
  return FailErrno(errno, "cannot rename a temporary file to '{}'", Printable(path_));
}

// The rename is durable once the directory is. File systems that cannot sync one say EINVAL.
Result<> AtomicFile::SyncDirectory() const {
  std::string directory = std::filesystem::path(final_).parent_path().string();
  Fd fd(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return {};  // may be entered but not read: nothing more can be done
  if (fsync(fd.get()) == 0 || errno == EINVAL || errno == EROFS) return {};
  return FailErrno(errno, "'{}': sync of its directory", Printable(path_));
}

}  // namespace platter
