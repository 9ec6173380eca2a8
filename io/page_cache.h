// What the kernel holds in memory of a file: whether reading it waits for a device.
#pragma once

#include "base/range.h"

namespace platter {

// True if these bytes of the file can be read without waiting, as far as the kernel can tell: its
// pages are in the page cache, or it has no device behind it (tmpfs). They may be dropped at any
// moment, so this is a hint for where to do the reading. Any thread.
bool ReadsWithoutWaiting(int fd, Range range);

}  // namespace platter
