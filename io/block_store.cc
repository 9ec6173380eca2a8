#include "io/block_store.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/bytes.h"
#include "base/sync.h"

namespace platter {
namespace {

// Asked of sysfs: to try it out would change the device.
bool DiscardsBlocks(int fd) {
  struct stat status;
  if (fstat(fd, &status) != 0) return false;
  // A partition has no queue of its own; its disk is the folder above.
  for (const char* queue : {"queue", "../queue"}) {
    std::string path = fmt::format("/sys/dev/block/{}:{}/{}/discard_max_bytes",
                                   major(status.st_rdev), minor(status.st_rdev), queue);
    Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    char first = '0';
    if (file && read(file.get(), &first, 1) == 1) return first != '0';
  }
  return false;
}

}  // namespace

BlockStore::BlockStore(Fd fd, std::string name, uint64_t size, uint32_t sector,
                       const FileStoreOptions& options)
    : FdStore(std::move(fd), std::move(name),
              options.direct ? FdIo::Direct{.offset = sector,
                                            .memory = std::min(sector, uint32_t{Buffer::kAlign})}
                             : FdIo::Direct{},
              size, options.writable),
      size_(size),
      sector_(sector),
      punch_(options.writable && DiscardsBlocks(io_.fd())) {}

Result<std::unique_ptr<BlockStore>> BlockStore::Open(const std::string& path,
                                                     const FileStoreOptions& options) {
  std::string name = Printable(path);
  // O_EXCL on a device (without O_CREAT): not while a file system on it is mounted.
  int flags = (options.writable ? O_RDWR : O_RDONLY) | (options.direct ? O_DIRECT : 0) |
              (options.writable && options.lock ? O_EXCL : 0) | O_NOCTTY;
  auto opened = OpenPath(path, flags, options.path);
  if (!opened && opened.error().errno_value() == EBUSY) {
    return Fail(Code::kRefused, "'{}' is in use by the system (mounted, or part of another device)",
                name);
  }
  Fd fd = TRY(std::move(opened));
  struct stat status;
  if (fstat(fd.get(), &status) != 0) return FailErrno(errno, "'{}': fstat", name);
  if (!S_ISBLK(status.st_mode)) return Fail(Code::kRefused, "'{}' is not a block device", name);
  TRY(TakeLock(fd.get(), options, name));
  uint64_t size = 0;
  if (ioctl(fd.get(), BLKGETSIZE64, &size) != 0) {
    return FailErrno(errno, "'{}': cannot get the size of the device", name);
  }
  int sector = 0;
  if (ioctl(fd.get(), BLKSSZGET, &sector) != 0) {
    return FailErrno(errno, "'{}': cannot get the sector size of the device", name);
  }
  return std::unique_ptr<BlockStore>(
      new BlockStore(std::move(fd), std::move(name), size, static_cast<uint32_t>(sector), options));
}

Store::Caps BlockStore::caps() const {
  return Caps{.align = io_.align(), .punch = punch_.load(), .block_device = true};
}

// True if the kernel did it. The calls are tried from the cheapest on, and one that fails for
// whatever reason is left alone after: writing zeros tells a real error by itself.
bool BlockStore::ZeroSectors(Range sectors, bool may_unmap) {
  RangeLock::Guard guard = io_.Exclude(sectors);
  auto offset = static_cast<off_t>(sectors.offset), length = static_cast<off_t>(sectors.length);
  if (may_unmap && punch_) {
    if (fallocate(io_.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) == 0)
      return true;
    punch_ = false;
  }
  if (zero_range_) {
    if (fallocate(io_.fd(), FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length) == 0)
      return true;
    zero_range_ = false;
  }
  if (zero_out_) {
    uint64_t range[2] = {sectors.offset, sectors.length};
    if (ioctl(io_.fd(), BLKZEROOUT, range) == 0) return true;
    zero_out_ = false;
  }
  return false;
}

Result<> BlockStore::Zero(Range range, bool may_unmap) {
  sched::Yield("store zero");
  TRY(CheckWritable());
  if (!FitsIn(range.offset, range.length, size_)) {
    return Fail(Code::kNoSpace,
                "'{}': zeros at {:#x} reach past the end of the device (size {:#x})", name(),
                range.offset, size_);
  }
  Range whole = range.Inward(sector_);
  if (whole.empty() || !ZeroSectors(whole, may_unmap)) return io_.WriteZeros(range);
  TRY(io_.WriteZeros(Range::FromTo(range.offset, whole.offset)));
  return io_.WriteZeros(Range::FromTo(whole.end(), range.end()));
}

Result<> BlockStore::Resize(uint64_t size) {
  if (size == size_) return {};
  return Fail(Code::kUnsupported, "'{}': the size of a block device is fixed ({} bytes)", name(),
              size_);
}

Result<> BlockStore::Allocate(Range) {
  return Fail(Code::kUnsupported, "'{}': a block device cannot allocate space ahead", name());
}

Result<Store::Run> BlockStore::FindRun(uint64_t at) {
  if (at < size_) return Run{.length = size_ - at, .data = true};
  return Fail(Code::kOutOfRange, "'{}': {:#x} is past the end of the device (size {:#x})", name(),
              at, size_);
}

}  // namespace platter
