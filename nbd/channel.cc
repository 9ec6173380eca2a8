#include "nbd/channel.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace platter::nbd {
namespace {

constexpr uint64_t kMostCopied = 256 * kKiB;  // bytes of a file, by one SendCopied

class PlainChannel final : public Channel {
 public:
  explicit PlainChannel(int fd) : fd_(fd) {}

  Result<std::optional<size_t>> Receive(Bytes into, bool wait) override {
    while (true) {
      ssize_t count = recv(fd_, into.data(), into.size(), wait ? 0 : MSG_DONTWAIT);
      if (count >= 0) return static_cast<size_t>(count);
      if (errno == EAGAIN && !wait) return std::nullopt;
      if (errno != EINTR && errno != EAGAIN) return FailErrno(errno, "receiving");
      if (errno == EAGAIN) TRY(WaitFor(fd_, POLLIN, Deadline::max()));
    }
  }

  Result<size_t> Send(std::span<const iovec> from, bool more) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(from.data());
    message.msg_iovlen = from.size();
    while (true) {
      ssize_t count = sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0));
      if (count >= 0) return static_cast<size_t>(count);
      if (errno == EAGAIN) return size_t{0};
      if (errno != EINTR) return FailErrno(errno, "sending");
    }
  }

  Result<size_t> SendFile(const FileBytes& from) override {
    // There is no flag for one call. From here on receiving has to poll where it waits, which a
    // client that reads much at once does not notice.
    if (!nonblocking_) {
      if (fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) | O_NONBLOCK) != 0) return SendCopied(from);
      nonblocking_ = true;
    }
    while (true) {
      auto offset = static_cast<off_t>(from.offset);
      ssize_t count = sendfile(fd_, from.fd, &offset, from.length);
      if (count > 0) return static_cast<size_t>(count);
      if (count == 0) return Fail(Code::kIo, "an image became shorter while it was read");
      if (errno == EAGAIN) return size_t{0};
      if (errno == EINVAL || errno == ENOSYS) return SendCopied(from);
      if (errno != EINTR) return FailErrno(errno, "sending");
    }
  }
  bool sends_files() const override { return true; }

  bool sending() const override { return false; }
  void Close() override { shutdown(fd_, SHUT_WR); }
  int fd() const override { return fd_; }

 private:
  // From a file system that cannot lend its pages.
  Result<size_t> SendCopied(const FileBytes& from) {
    Memory memory(std::min(from.length, kMostCopied));
    ssize_t count = pread(from.fd, memory.data(), memory.size(), static_cast<off_t>(from.offset));
    if (count < 0) return FailErrno(errno, "reading an image");
    if (count == 0) return Fail(Code::kIo, "an image became shorter while it was read");
    const iovec part{memory.data(), static_cast<size_t>(count)};
    return Send(std::span(&part, 1), false);
  }

  const int fd_;
  bool nonblocking_ = false;
};

}  // namespace

std::unique_ptr<Channel> MakePlainChannel(int fd) { return std::make_unique<PlainChannel>(fd); }

Result<bool> WaitFor(int fd, short events, Deadline deadline) {
  pollfd wanted{fd, events, 0};
  while (true) {
    auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    int ready = poll(&wanted, 1, static_cast<int>(std::min<int64_t>(left.count(), 1'000'000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return FailErrno(errno, "waiting for a peer");
  }
}

}  // namespace platter::nbd
