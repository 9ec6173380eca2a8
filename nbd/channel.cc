#include "nbd/channel.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace platter::nbd {
namespace {

class PlainChannel final : public Channel {
 public:
  explicit PlainChannel(int fd) : fd_(fd) {}

  Result<std::optional<size_t>> Receive(Bytes into, bool wait) override {
    while (true) {
      ssize_t count = recv(fd_, into.data(), into.size(), wait ? 0 : MSG_DONTWAIT);
      if (count >= 0) return static_cast<size_t>(count);
      if (errno == EAGAIN && !wait) return std::nullopt;
      if (errno != EINTR && errno != EAGAIN) return FailErrno(errno, "receiving");
    }
  }

  Result<size_t> Send(std::span<const iovec> from) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(from.data());
    message.msg_iovlen = from.size();
    while (true) {
      ssize_t count = sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (count >= 0) return static_cast<size_t>(count);
      if (errno == EAGAIN) return size_t{0};
      if (errno != EINTR) return FailErrno(errno, "sending");
    }
  }

  bool sending() const override { return false; }
  void Close() override { shutdown(fd_, SHUT_WR); }
  int fd() const override { return fd_; }

 private:
  const int fd_;
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
