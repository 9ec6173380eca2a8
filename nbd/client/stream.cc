#include "nbd/client/stream.h"

#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "io/fd.h"
#include "io/iov.h"

namespace platter::nbd {

namespace {

timeval ToTimeval(std::chrono::milliseconds time) {
  return {.tv_sec = time.count() / 1000, .tv_usec = time.count() % 1000 * 1000};
}

std::unexpected<Error> Failed(int error, const char* doing) {
  if (error == EAGAIN) error = ETIMEDOUT;
  return FailErrno(error, "{}", doing);
}

class PlainStream final : public Stream {
 public:
  explicit PlainStream(Fd fd) : fd_(std::move(fd)) {}

  Result<size_t> ReadSome(Bytes into) override {
    while (true) {
      ssize_t count = recv(fd_.get(), into.data(), into.size(), 0);
      if (count > 0) return static_cast<size_t>(count);
      if (count == 0) return Fail(Code::kIo, "the server closed the connection");
      if (errno != EINTR) return Failed(errno, "receiving");
    }
  }

  using Stream::Write;
  Result<> Write(std::span<const iovec> from) override {
    std::vector<iovec> rest(from.begin(), from.end());
    for (size_t first = 0; first < rest.size();) {
      if (rest[first].iov_len == 0) {
        ++first;
        continue;
      }
      msghdr message{};
      message.msg_iov = &rest[first];
      message.msg_iovlen = std::min<size_t>(rest.size() - first, 1024);
      ssize_t count = sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return Failed(errno, "sending");
      Advance(rest, first, static_cast<size_t>(count));
    }
    return {};
  }

  void Shutdown() override { shutdown(fd_.get(), SHUT_RDWR); }

  void SetPatience(std::chrono::milliseconds patience) override {
    timeval time = ToTimeval(patience);
    setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
  }

  int fd() const override { return fd_.get(); }

 private:
  static void Advance(std::vector<iovec>& rest, size_t& first, size_t count) {
    while (count > 0) {
      iovec& one = rest[first];
      size_t part = std::min(count, one.iov_len);
      one.iov_base = static_cast<char*>(one.iov_base) + part;
      one.iov_len -= part;
      count -= part;
      if (one.iov_len == 0) ++first;
    }
  }

  const Fd fd_;
};

void SetOption(int fd, int level, int option, int value) {
  setsockopt(fd, level, option, &value, sizeof value);  // a kindness: works without
}

// A machine that has vanished does not say goodbye.
void WatchOver(int fd) {
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, 20);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
  SetOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 60'000);
}

// connect(2), for as long as `patience` lasts (SO_SNDTIMEO counts for it).
Result<Fd> ConnectTo(int family, const sockaddr* address, socklen_t length,
                     std::chrono::milliseconds patience) {
  Fd fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return FailErrno(errno, "socket");
  timeval time = ToTimeval(patience);
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
  if (connect(fd.get(), address, length) == 0) return fd;
  return FailErrno(errno == EINPROGRESS || errno == EAGAIN ? ETIMEDOUT : errno, "connecting");
}

Result<Fd> ConnectTcp(const Uri& uri, std::chrono::milliseconds patience) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_ADDRCONFIG;
  addrinfo* found = nullptr;
  int error = getaddrinfo(uri.host.c_str(), std::to_string(uri.port).c_str(), &hints, &found);
  if (error != 0) {
    return Fail(Code::kIo, "looking up host '{}': {}", Printable(uri.host), gai_strerror(error));
  }
  std::unique_ptr<addrinfo, void (*)(addrinfo*)> list(found, freeaddrinfo);
  Result<Fd> last = Fail(Code::kIo, "host '{}' has no address", Printable(uri.host));
  for (const addrinfo* one = list.get(); one; one = one->ai_next) {
    last = ConnectTo(one->ai_family, one->ai_addr, one->ai_addrlen, patience);
    if (!last) continue;
    WatchOver(last->get());
    return last;
  }
  return last;
}

Result<Fd> ConnectUnix(const Uri& uri, std::chrono::milliseconds patience) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (uri.socket.size() >= sizeof address.sun_path) {
    return Fail(Code::kOutOfRange, "a socket's path has {} bytes at most",
                sizeof address.sun_path - 1);
  }
  std::memcpy(address.sun_path, uri.socket.data(), uri.socket.size());
  return ConnectTo(AF_UNIX, reinterpret_cast<sockaddr*>(&address), sizeof address, patience);
}

Result<Fd> ConnectVsock(const Uri& uri, std::chrono::milliseconds patience) {
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = uri.cid;
  address.svm_port = uri.port;
  return ConnectTo(AF_VSOCK, reinterpret_cast<sockaddr*>(&address), sizeof address, patience);
}

Result<Fd> ConnectSocket(const Uri& uri, std::chrono::milliseconds patience) {
  switch (uri.transport) {
    case Uri::kTcp: return ConnectTcp(uri, patience);
    case Uri::kUnix: return ConnectUnix(uri, patience);
    case Uri::kVsock: return ConnectVsock(uri, patience);
  }
  std::unreachable();
}

}  // namespace

Result<> Stream::Read(Bytes into) {
  while (!into.empty()) into = into.subspan(TRY(ReadSome(into)));
  return {};
}

Result<> Stream::Write(ConstBytes from) {
  iovec one{const_cast<std::byte*>(from.data()), from.size()};
  return Write(std::span<const iovec>(&one, 1));
}

Result<std::unique_ptr<Stream>> Connect(const Uri& uri, std::chrono::milliseconds patience) {
  auto stream = std::make_unique<PlainStream>(TRY(ConnectSocket(uri, patience)));
  stream->SetPatience(patience);
  return stream;
}

}  // namespace platter::nbd
