#include "io/file_lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <span>

namespace platter {
namespace {

enum Permission : int { kConsistentRead = 0, kWrite = 1, kResize = 3 };
constexpr int kUsed = 100, kNotShared = 200;

struct Wish {
  std::span<const Permission> used, not_shared;
};

Wish WishOf(LockMode mode) {
  static constexpr Permission kAll[] = {kConsistentRead, kWrite, kResize};
  static constexpr std::span<const Permission> kRead = std::span(kAll).first(1);
  static constexpr std::span<const Permission> kChange = std::span(kAll).subspan(1);
  switch (mode) {
    case LockMode::kReader: return {kRead, kChange};
    case LockMode::kSharedReader: return {kRead, {}};
    case LockMode::kWriter: break;
  }
  return {kAll, kChange};
}

struct flock OneByte(short type, int byte) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

bool IsConflict(int error) { return error == EAGAIN || error == EACCES; }

// 0 or an errno.
int SetByte(int fd, short type, int byte) {
  struct flock lock = OneByte(type, byte);
  int result = 0;
  do {
    result = fcntl(fd, F_OFD_SETLK, &lock);
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

// True if another description holds `byte`.
bool HeldByOther(int fd, int byte) {
  struct flock lock = OneByte(F_WRLCK, byte);
  return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

// The byte in the way, 0 for none, and -1 where there are no locks at all.
int TryAll(int fd, const Wish& wish) {
  auto take = [&](int byte) {
    int error = SetByte(fd, F_RDLCK, byte);
    return error == 0 ? 0 : IsConflict(error) ? byte : -1;
  };
  for (Permission used : wish.used) {
    if (int bad = take(kUsed + used); bad != 0) return bad;
  }
  for (Permission kept : wish.not_shared) {
    if (int bad = take(kNotShared + kept); bad != 0) return bad;
  }
  for (Permission used : wish.used) {
    if (HeldByOther(fd, kNotShared + used)) return kNotShared + used;
  }
  for (Permission kept : wish.not_shared) {
    if (HeldByOther(fd, kUsed + kept)) return kUsed + kept;
  }
  return 0;
}

}  // namespace

Result<> LockImage(int fd, LockMode mode, const std::string& name) {
  const Wish wish = WishOf(mode);
  const int bad = TryAll(fd, wish);
  if (bad == 0) return {};
  for (Permission used : wish.used) SetByte(fd, F_UNLCK, kUsed + used);
  for (Permission kept : wish.not_shared) SetByte(fd, F_UNLCK, kNotShared + kept);
  if (bad < 0) return {};  // ENOLCK, EINVAL ...: a file system without locks
  return Fail(Code::kRefused,
              "'{}' is in use by another program (QEMU's lock, byte {}): close it{}", name, bad,
              mode == LockMode::kReader ? ", or use --force-share to read it all the same" : "");
}

}  // namespace platter
