// LargePages: memory for files that live in memory (tmpfs), in large pages.
//
// tmpfs finds memory for a file page by page, 4 KiB each, with the lock held that all writers to
// the file wait for, and that costs more than filling the pages with bytes. Where the whole of a
// large page is about to be written it can be had at once: 640 MiB written take 0.12 s instead of
// 0.23. The kernel does it for a mapping (MADV_COLLAPSE, since Linux 6.1), so the range is mapped
// for a moment; nobody reads or writes through the mapping.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/math.h"
#include "base/range.h"

namespace platter {

class LargePages {
 public:
  static constexpr uint64_t kSize = 2 * kMiB;  // bytes of one

  // Of the file open as `fd`, which is borrowed; where it is not on tmpfs Make does nothing.
  explicit LargePages(int fd);

  // The large pages that lie in `range` and in the file get their memory, where nothing is there
  // yet. What the file reads as does not change, whoever writes to it meanwhile. Best effort: the
  // kernel may not do it, have no large pages left, or take so long to find some that small ones
  // are cheaper; then it is not asked again. Any thread.
  void Make(Range range);

 private:
  bool MakePart(Range part);

  const int fd_;
  std::atomic<bool> on_;
  std::atomic<int64_t> lost_{0};  // nanoseconds, against small pages
};

// True for a file on a file system without a device behind it, where a read never waits.
bool LivesInMemory(int fd);

}  // namespace platter
