// The image lock: keeps two programs from changing one image at a time, together with QEMU.
//
// QEMU (from 2.10 on) takes shared OFD locks on single bytes of the image file, which stand for
// permissions and have nothing to do with the bytes stored there: byte 100 + i for each permission
// i that it uses, and byte 200 + i for each that it does not let others use. Permissions are
// 0 consistent read, 1 write, 2 write without a change of content, 3 resize. Everybody takes the
// bytes first and looks at the opposite ones of others after (F_OFD_GETLK), so that of two who
// start at once at most one goes on.
//
//                  uses               does not share
//   reader         consistent read    write, resize
//   shared reader  consistent read                       (--force-share)
//   writer         + write, resize    write, resize
//
// The lock belongs to the open file description and goes when that is closed. Where the file system
// has no locks, nothing is locked and nobody is held off.
#pragma once

#include <string>

#include "base/result.h"

namespace platter {

enum class LockMode { kReader, kSharedReader, kWriter };

// Takes the lock of an open file or block device; does not wait. kRefused if another holder is in
// the way. `name` is how messages call the file.
Result<> LockImage(int fd, LockMode mode, const std::string& name);

}  // namespace platter
