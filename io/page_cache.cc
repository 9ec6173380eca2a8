#include "io/page_cache.h"

#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace platter {
namespace {

// cachestat(2), Linux 6.5: newer than the headers that we build with.
constexpr long kCachestat = 451;
struct CachestatRange {
  uint64_t offset, length;
};
struct Cachestat {  // pages
  uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

bool HasNoDevice(int fd) {
  struct statfs fs;
  if (fstatfs(fd, &fs) != 0) return false;
  return fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
}

}  // namespace

bool ReadsWithoutWaiting(int fd, Range range) {
  if (HasNoDevice(fd)) return true;
  // A kernel without it, or a file whose cache is none of our business: then nobody knows.
  CachestatRange asked{range.offset, range.length};
  Cachestat found{};
  if (syscall(kCachestat, fd, &asked, &found, 0) != 0) return false;
  static const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return found.cached * page == range.Outward(page).length;
}

}  // namespace platter
