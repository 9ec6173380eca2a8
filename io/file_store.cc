#include "io/file_store.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/bytes.h"
#include "base/sync.h"
#include "io/file_lock.h"
#include "io/iov.h"

namespace platter {
namespace {

constexpr uint64_t kProbe = 4096;  // bytes

bool NotSupported(int error) { return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL; }

// Asks by a request that changes nothing: punching past the end of the file, whose length stays.
bool ProbePunch(int fd) {
  struct stat status;
  if (fstat(fd, &status) != 0) return false;
  off_t past = static_cast<off_t>(RoundUp(static_cast<uint64_t>(status.st_size), kProbe));
  return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, past, kProbe) == 0;
}

// Asks a writable file to share a block with itself, which a file system that can share blocks
// refuses as overlapping, and one that cannot as unknown. A read-only one is judged by its kind.
bool ProbeReflink(int fd, bool writable) {
  if (writable) {
    file_clone_range same{.src_fd = fd, .src_offset = 0, .src_length = kProbe, .dest_offset = 0};
    return ioctl(fd, FICLONERANGE, &same) == 0 || errno == EINVAL;
  }
  struct statfs fs;
  constexpr auto kXfs = 0x58465342;  // "XFSB", not in <linux/magic.h>
  return fstatfs(fd, &fs) == 0 && (fs.f_type == BTRFS_SUPER_MAGIC || fs.f_type == kXfs);
}

// The kernel tells the alignment from 6.1 on; before that, the smallest read that works does.
Result<FdIo::Direct> FindAlignment(int fd, const std::string& name) {
#ifdef STATX_DIOALIGN
  struct statx status{};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0 && status.stx_dio_offset_align > 0) {
    return FdIo::Direct{.offset = status.stx_dio_offset_align, .memory = status.stx_dio_mem_align};
  }
#endif
  Buffer buffer(Buffer::kAlign);
  for (uint32_t align = 512; align <= Buffer::kAlign; align *= 2) {
    if (pread(fd, buffer.data(), align, 0) >= 0)
      return FdIo::Direct{.offset = align, .memory = align};
  }
  return Fail(Code::kUnsupported, "'{}': its file system does not do O_DIRECT (--cache none)",
              name);
}

}  // namespace

FileStore::FileStore(Fd fd, std::string name, FdIo::Direct alignment, bool writable)
    : io_(std::move(fd), std::move(name), alignment, std::nullopt),
      large_pages_(io_.fd()),
      writable_(writable),
      reflink_(ProbeReflink(io_.fd(), writable)),
      punch_(writable && ProbePunch(io_.fd())) {}

Result<std::unique_ptr<FileStore>> FileStore::FromFd(Fd fd, const std::string& name,
                                                     const FileStoreOptions& options) {
  std::string printable = Printable(name);
  struct stat status;
  if (fstat(fd.get(), &status) != 0) return FailErrno(errno, "'{}': fstat", printable);
  if (!S_ISREG(status.st_mode))
    return Fail(Code::kRefused, "'{}' is not a regular file", printable);
  if (options.lock) {
    LockMode mode = options.writable      ? LockMode::kWriter
                    : options.force_share ? LockMode::kSharedReader
                                          : LockMode::kReader;
    TRY(LockImage(fd.get(), mode, printable));
  }
  FdIo::Direct alignment;
  if (options.direct) alignment = TRY(FindAlignment(fd.get(), printable));
  return std::unique_ptr<FileStore>(
      new FileStore(std::move(fd), std::move(printable), alignment, options.writable));
}

Result<std::unique_ptr<FileStore>> FileStore::Open(const std::string& path,
                                                   const FileStoreOptions& options) {
  int flags = (options.writable ? O_RDWR : O_RDONLY) | (options.direct ? O_DIRECT : 0);
  // O_NONBLOCK: a FIFO under this name must not make us wait; files do not mind.
  Fd fd(open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!fd && errno == EINVAL && options.direct) {
    return Fail(Code::kUnsupported, "'{}': its file system does not do O_DIRECT (--cache none)",
                Printable(path));
  }
  if (!fd) return FailErrno(errno, "cannot open '{}'", Printable(path));
  // io_uring would take it for a wish never to wait.
  if (fcntl(fd.get(), F_SETFL, flags) != 0) {
    return FailErrno(errno, "cannot open '{}'", Printable(path));
  }
  return FromFd(std::move(fd), path, options);
}

Result<std::unique_ptr<FileStore>> FileStore::Create(const std::string& path,
                                                     const FileStoreOptions& options) {
  int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY | (options.direct ? O_DIRECT : 0);
  Fd fd(open(path.c_str(), flags, 0666));
  if (!fd && errno == EEXIST) {
    return Fail(Code::kRefused, "'{}' exists already", Printable(path));
  }
  if (!fd) return FailErrno(errno, "cannot create '{}'", Printable(path));
  FileStoreOptions writable = options;
  writable.writable = true;
  return FromFd(std::move(fd), path, writable);
}

Store::Caps FileStore::caps() const {
  return Caps{.align = io_.align(), .punch = punch_.load(), .reflink = reflink_};
}

Result<> FileStore::CheckWritable() const {
  if (writable_) return {};
  return Fail(Code::kReadOnly, "'{}' is open for reading only", name());
}

Result<> FileStore::Write(uint64_t at, std::span<const iovec> from) {
  TRY(CheckWritable());
  Expect({at, IovLength(from)});
  return io_.Write(at, from);
}

void FileStore::Expect(Range range) {
  if (writable_ && !io_.direct()) large_pages_.Make(range);
}

// 0 or an errno. Direct-mode writes to the same sectors wait.
int FileStore::Fallocate(int mode, Range range) {
  RangeLock::Guard guard = io_.Exclude(range);
  int result = 0;
  do {
    result = fallocate(io_.fd(), mode, static_cast<off_t>(range.offset),
                       static_cast<off_t>(range.length));
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

// Not by ftruncate: between asking for the length and setting it, another thread's write past the
// new end would be cut off. Allocating the last byte, or writing it, only ever grows the file.
Result<> FileStore::GrowTo(uint64_t size) {
  if (TRY(Size()) >= size) return {};
  sched::Yield("store grow");
  int error = Fallocate(0, Range{size - 1, 1});
  if (error == 0) return {};
  if (!NotSupported(error)) return FailErrno(error, "'{}': cannot grow to {} bytes", name(), size);
  return io_.WriteZeros(Range{size - 1, 1});
}

Result<> FileStore::Zero(Range range, bool may_unmap) {
  sched::Yield("store zero");
  TRY(CheckWritable());
  if (!FitsIn(range.offset, range.length, FdIo::kEverything.end())) {
    return Fail(Code::kOutOfRange, "'{}': zeros at {:#x} end past 2^63", name(), range.offset);
  }
  if (range.empty()) return {};
  if (may_unmap && punch_) {
    TRY(GrowTo(range.end()));
    int error = Fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range);
    if (error == 0) return {};
    if (!NotSupported(error)) return FailErrno(error, "'{}': cannot punch a hole", name());
    punch_ = false;
  }
  if (zero_range_) {
    int error = Fallocate(FALLOC_FL_ZERO_RANGE, range);
    if (error == 0) return {};
    if (!NotSupported(error)) return FailErrno(error, "'{}': cannot zero a range", name());
    zero_range_ = false;
  }
  return io_.WriteZeros(range);
}

Result<> FileStore::Resize(uint64_t size) {
  sched::Yield("store resize");
  TRY(CheckWritable());
  if (size >= FdIo::kEverything.end()) {
    return Fail(Code::kOutOfRange, "'{}': a size of {} bytes is past 2^63", name(), size);
  }
  RangeLock::Guard guard = io_.Exclude(FdIo::kEverything);
  int result = 0;
  do {
    result = ftruncate(io_.fd(), static_cast<off_t>(size));
  } while (result != 0 && errno == EINTR);
  if (result != 0) return FailErrno(errno, "'{}': cannot set the size to {}", name(), size);
  return {};
}

Result<> FileStore::Allocate(Range range) {
  sched::Yield("store allocate");
  TRY(CheckWritable());
  if (range.empty()) return {};
  if (!FitsIn(range.offset, range.length, FdIo::kEverything.end())) {
    return Fail(Code::kOutOfRange, "'{}': space at {:#x} ends past 2^63", name(), range.offset);
  }
  int error = Fallocate(0, range);
  if (error == 0) return {};
  if (NotSupported(error)) {
    return Fail(Code::kUnsupported, "'{}': its file system cannot allocate space ahead", name());
  }
  return FailErrno(error, "'{}': cannot allocate {} bytes", name(), range.length);
}

Result<Store::Run> FileStore::FindRun(uint64_t at) {
  sched::Yield("store run");
  const uint64_t size = TRY(Size());
  if (at >= size) {
    return Fail(Code::kOutOfRange, "'{}': {:#x} is past the end of the file (size {:#x})", name(),
                at, size);
  }
  off_t data = lseek(io_.fd(), static_cast<off_t>(at), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return Run{.length = size - at, .data = false};
  if (data < 0) return Run{.length = size - at, .data = true};  // a file system that cannot tell
  if (uint64_t first = static_cast<uint64_t>(data); first > at) {
    return Run{.length = std::min(first, size) - at, .data = false};
  }
  off_t hole = lseek(io_.fd(), static_cast<off_t>(at), SEEK_HOLE);
  // A hole that is no longer past `at`, or the file cut short meanwhile: say what is always right.
  if (hole < 0 || static_cast<uint64_t>(hole) <= at) return Run{.length = 1, .data = true};
  return Run{.length = std::min(static_cast<uint64_t>(hole), size) - at, .data = true};
}

}  // namespace platter
