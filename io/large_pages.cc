#include "io/large_pages.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "base/sync.h"

namespace platter {
namespace {

// Mapped at once: enough that the call's own cost does not count, too little to be seen in the size
// of the process.
constexpr uint64_t kPart = 16 * kMiB;

// What small pages take for the same, about; large ones usually a third. More is lost where the
// kernel has to move others' memory about, or a hypervisor to find some first.
constexpr int64_t kSmallPages = 300'000;  // nanoseconds for each large page
// So much may be lost on one file.
constexpr int64_t kMostLost = 30'000'000;  // nanoseconds

int64_t ThreadNanoseconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

// Room in the address space; a mapping of a file has large pages only where address and offset in
// the file agree modulo their size.
class Window {
 public:
  explicit Window(uint64_t length)
      : length_(length + LargePages::kSize),
        start_(mmap(nullptr, length_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  ~Window() {
    if (start_ != MAP_FAILED) munmap(start_, length_);
  }

  // Null where it cannot be mapped.
  void* Map(int fd, Range part) {
    if (start_ == MAP_FAILED) return nullptr;
    auto* place = reinterpret_cast<void*>(
        RoundUp(reinterpret_cast<uintptr_t>(start_), uint64_t{LargePages::kSize}));
    void* mapped = mmap(place, part.length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                        static_cast<off_t>(part.offset));
    return mapped == MAP_FAILED ? nullptr : mapped;
  }

 private:
  const uint64_t length_;
  void* const start_;
};

}  // namespace

bool LivesInMemory(int fd) {
  struct statfs fs;
  if (fstatfs(fd, &fs) != 0) return false;
  return fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
}

LargePages::LargePages(int fd) : fd_(fd), on_(LivesInMemory(fd)) {}

void LargePages::Make(Range range) {
  if (!on_.load(std::memory_order_relaxed) || range.Inward(kSize).empty()) return;
  sched::Yield("store large pages");
  struct stat status;
  if (fstat(fd_, &status) != 0) return;
  range = range.Intersect({0, static_cast<uint64_t>(status.st_size)}).Inward(kSize);
  while (on_ && !range.empty()) {
    Range part{range.offset, std::min(range.length, kPart)};
    if (!MakePart(part)) on_ = false;
    range = Range::FromTo(part.end(), range.end());
  }
}

// False if it is not to be tried again.
bool LargePages::MakePart(Range part) {
  off_t data = lseek(fd_, static_cast<off_t>(part.offset), SEEK_DATA);
  if (data >= 0 && static_cast<uint64_t>(data) < part.end()) return true;
  const int64_t begin = ThreadNanoseconds();
  // One small page must be there. Not by a write, which could undo another thread's.
  for (uint64_t at = part.offset; at < part.end(); at += kSize) {
    if (fallocate(fd_, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at), 4096) != 0) return false;
  }
  Window window(part.length);
  void* mapped = window.Map(fd_, part);
  if (!mapped || madvise(mapped, part.length, MADV_COLLAPSE) != 0) return false;
  int64_t spent = ThreadNanoseconds() - begin;
  int64_t lost = spent - kSmallPages * static_cast<int64_t>(part.length / kSize);
  return lost <= 0 || lost_.fetch_add(lost) + lost <= kMostLost;
}

}  // namespace platter
