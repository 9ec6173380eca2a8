#include "io/fd_io.h"

#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/sync.h"
#include "io/iov.h"
#include "io/large_pages.h"

namespace platter {
namespace {

constexpr uint64_t kMaxOffset = uint64_t{1} << 63;  // bytes: off_t ends here
constexpr size_t kBounce = 1 * kMiB;

// Moves the whole of `iov` with calls of `step(at, list)`, which returns as preadv does. Returns
// the bytes moved, fewer than asked only where a call returned 0; a failure's errno in `error`.
template <class Step>
uint64_t Transfer(uint64_t at, std::span<const iovec> iov, int& error, Step step) {
  const uint64_t length = IovLength(iov);
  uint64_t done = 0;
  std::vector<iovec> rest;
  error = 0;
  while (done < length) {
    if (done > 0) {
      rest.clear();
      IovSlice(iov, done, length - done, rest);
    }
    std::span<const iovec> now = done > 0 ? std::span<const iovec>(rest) : iov;
    ssize_t count =
        step(static_cast<off_t>(at + done), now.first(std::min<size_t>(now.size(), IOV_MAX)));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) error = errno;
    if (count <= 0) break;
    done += static_cast<uint64_t>(count);
  }
  return done;
}

}  // namespace

FdIo::FdIo(Fd fd, std::string name, Direct alignment, std::optional<uint64_t> device_size)
    : fd_(std::move(fd)), name_(std::move(name)), direct_(alignment), device_size_(device_size) {
  CHECK(direct_.offset <= kBounce && direct_.memory <= Buffer::kAlign);
  if (!direct() && LivesInMemory(fd_.get())) try_flags_ = 0;
}

std::unexpected<Error> FdIo::Failed(const char* verb, int error, uint64_t at,
                                    uint64_t length) const {
  return FailErrno(error, "'{}': cannot {} {} bytes at {:#x}", name_, verb, length, at);
}

std::unexpected<Error> FdIo::PastEnd(uint64_t at, uint64_t length) const {
  Result<uint64_t> size = FileSize();
  return Fail(Code::kCorrupt, "'{}': {} bytes at {:#x} reach past the end of the file (size {:#x})",
              name_, length, at, size.has_value() ? *size : 0);
}

bool FdIo::Fits(uint64_t at, std::span<const iovec> iov) const {
  if (!direct()) return true;
  if (!IsAligned(at, direct_.offset)) return false;
  return std::ranges::all_of(iov, [&](const iovec& one) {
    return IsAligned(one.iov_len, direct_.offset) &&
           IsAligned(reinterpret_cast<uintptr_t>(one.iov_base), direct_.memory);
  });
}

RangeLock::Guard FdIo::Exclude(Range range) const {
  if (!direct() || range.empty()) return {};
  return sectors_.Lock(range.Outward(direct_.offset));
}

Result<uint64_t> FdIo::FileSize() const {
  if (device_size_) return *device_size_;
  // In direct mode a tail that is being written makes the file longer for a moment.
  RangeLock::Guard guard = Exclude(Range{kMaxOffset - direct_.offset, direct_.offset});
  struct stat status;
  if (fstat(fd(), &status) != 0) return FailErrno(errno, "'{}': cannot get the size", name_);
  return static_cast<uint64_t>(status.st_size);
}

Result<> FdIo::Read(uint64_t at, std::span<const iovec> into) {
  sched::Yield("store read");
  const uint64_t length = IovLength(into);
  if (!FitsIn(at, length, kMaxOffset)) return PastEnd(at, length);
  return Fits(at, into) ? ReadPlain(at, into) : ReadBounced(at, into);
}

Result<> FdIo::ReadPlain(uint64_t at, std::span<const iovec> into) {
  int error = 0;
  uint64_t done = Transfer(at, into, error, [&](off_t where, std::span<const iovec> list) {
    // A direct read that stopped at an unaligned place cannot go on from there: the end is there.
    if (direct() && !IsAligned(static_cast<uint64_t>(where), direct_.offset)) return ssize_t{0};
    return preadv(fd(), list.data(), static_cast<int>(list.size()), where);
  });
  const uint64_t length = IovLength(into);
  if (error != 0) return Failed("read", error, at, length);
  if (done < length) return PastEnd(at, length);
  return {};
}

Result<> FdIo::Write(uint64_t at, std::span<const iovec> from) {
  sched::Yield("store write");
  const uint64_t length = IovLength(from);
  if (!FitsIn(at, length, kMaxOffset)) {
    return Fail(Code::kOutOfRange, "'{}': {} bytes at {:#x} end past 2^63", name_, length, at);
  }
  if (length == 0) return {};
  if (!Fits(at, from)) return WriteBounced(at, from);
  RangeLock::Guard guard = Exclude(Range{at, length});
  return WritePlain(at, from);
}

Result<> FdIo::WritePlain(uint64_t at, std::span<const iovec> from) {
  int error = 0;
  uint64_t done = Transfer(at, from, error, [&](off_t where, std::span<const iovec> list) {
    return pwritev(fd(), list.data(), static_cast<int>(list.size()), where);
  });
  const uint64_t length = IovLength(from);
  if (error != 0) return Failed("write", error, at, length);
  if (done < length) return Failed("write", ENOSPC, at, length);  // a device says so by a 0
  return {};
}

// Reads from an aligned offset until `into` is full or the file ends; how much there was.
Result<size_t> FdIo::ReadUpTo(uint64_t at, Bytes into) {
  size_t done = 0;
  while (done < into.size() && IsAligned(done, direct_.offset)) {
    ssize_t count =
        pread(fd(), into.data() + done, into.size() - done, static_cast<off_t>(at + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Failed("read", errno, at, into.size());
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

Result<> FdIo::ReadBounced(uint64_t at, std::span<const iovec> into) {
  const uint64_t end = at + IovLength(into);
  const Range all = Range::FromTo(at, end).Outward(direct_.offset);
  Buffer buffer(std::min<uint64_t>(all.length, kBounce));
  for (uint64_t next = all.offset; next < all.end(); next += buffer.size()) {
    Range chunk = Range{next, buffer.size()}.Intersect(all);
    Range part = chunk.Intersect(Range::FromTo(at, end));
    size_t got = TRY(ReadUpTo(chunk.offset, buffer.bytes().first(chunk.length)));
    if (chunk.offset + got < part.end()) return PastEnd(at, end - at);
    IovScatter(buffer.bytes().subspan(part.offset - chunk.offset, part.length), into,
               part.offset - at);
  }
  return {};
}

Result<> FdIo::WriteBounced(uint64_t at, std::span<const iovec> from) {
  const Range want{at, IovLength(from)};
  const Range all = want.Outward(direct_.offset);
  RangeLock::Guard guard = Exclude(want);
  uint64_t size = 0;
  if (!device_size_) {
    auto length_now = [&]() -> Result<uint64_t> {
      struct stat status;
      if (fstat(fd(), &status) != 0) return FailErrno(errno, "'{}': cannot get the size", name_);
      return static_cast<uint64_t>(status.st_size);
    };
    size = TRY(length_now());
    if (want.end() < all.end() && all.end() > size) {
      // The last sector will be longer than the file may be. From here on nobody else may change
      // the length, so it is asked again; at most our own sectors were free in between.
      guard = RangeLock::Guard();
      guard = sectors_.Lock(Range::FromTo(all.offset, kEverything.end()));
      size = TRY(length_now());
    }
  }
  Buffer buffer(std::min<uint64_t>(all.length, kBounce));
  for (uint64_t next = all.offset; next < all.end(); next += buffer.size()) {
    Range chunk = Range{next, buffer.size()}.Intersect(all);
    Range part = chunk.Intersect(want);
    TRY(WriteSectors(chunk, part, from, part.offset - at, buffer));
  }
  const uint64_t exact = std::max(size, want.end());
  if (!device_size_ && want.end() < all.end() && all.end() > exact) {
    if (ftruncate(fd(), static_cast<off_t>(exact)) != 0) {
      return FailErrno(errno, "'{}': cannot set the size to {}", name_, exact);
    }
  }
  return {};
}

// Writes whole `sectors`, of which `part` is new (from byte `skip` of `from` on) and the rest is
// what is there now, or zeros past the end.
Result<> FdIo::WriteSectors(Range sectors, Range part, std::span<const iovec> from, uint64_t skip,
                            Buffer& buffer) {
  const uint32_t align = direct_.offset;
  auto keep = [&](uint64_t sector) -> Result<> {
    Bytes old = buffer.bytes().subspan(sector - sectors.offset, align);
    size_t got = TRY(ReadUpTo(sector, old));
    std::memset(old.data() + got, 0, align - got);
    return {};
  };
  const uint64_t last = sectors.end() - align;
  if (part.offset > sectors.offset) TRY(keep(sectors.offset));
  bool kept_last = part.offset > sectors.offset && last == sectors.offset;
  if (part.end() < sectors.end() && !kept_last) TRY(keep(last));
  IovGather(from, skip, buffer.bytes().subspan(part.offset - sectors.offset, part.length));
  iovec one{buffer.data(), sectors.length};
  return WritePlain(sectors.offset, std::span<const iovec>(&one, 1));
}

Result<> FdIo::WriteZeros(Range range) {
  alignas(Buffer::kAlign) static constinit std::array<std::byte, 64 * kKiB> zeros{};
  std::array<iovec, 16> list;
  while (!range.empty()) {
    uint64_t count = 0;
    size_t parts = 0;
    for (; parts < list.size() && count < range.length; ++parts) {
      list[parts] = {zeros.data(), std::min<uint64_t>(zeros.size(), range.length - count)};
      count += list[parts].iov_len;
    }
    TRY(Write(range.offset, std::span<const iovec>(list.data(), parts)));
    range = Range::FromTo(range.offset + count, range.end());
  }
  return {};
}

// After a failed write-back the kernel drops the dirty pages' error and calls them clean, so that a
// second fdatasync succeeds without having written anything: a failure is remembered.
Result<> FdIo::Sync() {
  sched::Yield("store sync");
  if (int before = sync_failure_.load(); before != 0) {
    return FailErrno(before, "'{}': an earlier sync failed, written data may be lost", name_);
  }
  int result = 0;
  do {
    result = fdatasync(fd());
  } while (result != 0 && errno == EINTR);
  if (result == 0) return {};
  int error = errno;
  if (!direct()) sync_failure_ = error;
  return FailErrno(error, "'{}': sync", name_);
}

size_t FdIo::TryRead(uint64_t at, std::span<const iovec> into) {
  if (direct() || into.empty() || at >= kMaxOffset) return 0;
  if (!may_try_.load(std::memory_order_relaxed)) return 0;
  int count = static_cast<int>(std::min<size_t>(into.size(), IOV_MAX));
  ssize_t got = preadv2(fd(), into.data(), count, static_cast<off_t>(at), try_flags_);
  if (got < 0 && errno == EOPNOTSUPP) may_try_ = false;
  return got > 0 ? static_cast<size_t>(got) : 0;
}

}  // namespace platter
