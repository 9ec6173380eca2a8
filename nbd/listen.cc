#include "nbd/listen.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/bytes.h"
#include "nbd/nbd_wire.h"

namespace platter::nbd {
namespace {

constexpr int kBacklog = SOMAXCONN;  // a burst of clients waits instead of failing
constexpr int kFirstActivated = 3;   // SD_LISTEN_FDS_START of sd_listen_fds(3)

Fd OpenSocket(int family) {
  return Fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// "127.0.0.1:10809", "[::1]:10809", "vsock:2:10809", a path.
std::string TextOf(const sockaddr_storage& address, socklen_t size) {
  if (address.ss_family == AF_UNIX) {
    auto& local = reinterpret_cast<const sockaddr_un&>(address);
    if (size <= offsetof(sockaddr_un, sun_path) || local.sun_path[0] == 0) return "unix";
    return Printable(local.sun_path);
  }
  if (address.ss_family == AF_VSOCK) {
    auto& machine = reinterpret_cast<const sockaddr_vm&>(address);
    return fmt::format("vsock:{}:{}", machine.svm_cid, machine.svm_port);
  }
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, host, sizeof host, port,
                  sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "unknown";
  }
  return fmt::format(fmt::runtime(std::strchr(host, ':') ? "[{}]:{}" : "{}:{}"), host, port);
}

bool IsLoopback(const sockaddr_storage& address) {
  if (address.ss_family == AF_UNIX) return true;
  if (address.ss_family == AF_INET) {
    auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    return (ntohl(v4.sin_addr.s_addr) >> 24) == 127;
  }
  if (address.ss_family != AF_INET6) return false;
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
}

// Fills in `address` and `loopback` from the socket itself.
Result<Listener> Finish(Fd fd, const std::string& name) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  int listening = 0;
  socklen_t listening_size = sizeof listening;
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      getsockopt(fd.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &listening_size) != 0) {
    return FailErrno(errno, "socket {}", name);
  }
  if (!listening) return Fail(Code::kRefused, "socket {}: it does not listen", name);
  return Listener{std::move(fd), TextOf(address, size), "", IsLoopback(address)};
}

Result<Listener> BindAndListen(Fd fd, const sockaddr* address, socklen_t size,
                               const std::string& name) {
  if (bind(fd.get(), address, size) != 0 || listen(fd.get(), kBacklog) != 0) {
    return FailErrno(errno, "listening on {}", name);
  }
  return Finish(std::move(fd), name);
}

// Removes a socket file on which nobody listens.
Result<> ClearPath(const std::string& path, const sockaddr_un& address) {
  struct stat status{};
  if (lstat(path.c_str(), &status) != 0) return {};
  if (!S_ISSOCK(status.st_mode)) {
    return Fail(Code::kRefused, "socket '{}': something else is there", Printable(path, 4096));
  }
  Fd probe = OpenSocket(AF_UNIX);
  if (connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
      errno != ECONNREFUSED) {
    return Fail(Code::kRefused, "socket '{}': another program listens on it",
                Printable(path, 4096));
  }
  unlink(path.c_str());
  return {};
}

struct HostPort {
  std::string host, port;
};
Result<HostPort> Split(std::string_view address) {
  HostPort split{"", std::to_string(kDefaultPort)};
  size_t colon = address.rfind(':');
  if (address.starts_with('[')) {
    const size_t close = address.find(']');
    if (close == address.npos || (close + 1 < address.size() && address[close + 1] != ':')) {
      return Fail(Code::kOutOfRange, "address '{}' is not HOST:PORT", Printable(address));
    }
    split.host = address.substr(1, close - 1);
    colon = close + 1 < address.size() ? close + 1 : address.npos;
  } else {
    if (address.find(':') != colon) colon = address.npos;  // an IPv6 address alone
    split.host = address.substr(0, colon);
  }
  if (colon == address.npos) return split;
  split.port = address.substr(colon + 1);
  uint16_t number = 0;
  const char* end = split.port.data() + split.port.size();
  auto parsed = std::from_chars(split.port.data(), end, number);
  if (parsed.ec != std::errc() || parsed.ptr != end) {
    return Fail(Code::kOutOfRange, "address '{}': '{}' is no port", Printable(address),
                Printable(split.port));
  }
  return split;
}

}  // namespace

Result<Listener> ListenUnix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Fail(Code::kOutOfRange, "socket '{}': a path of 1 to {} bytes is needed",
                Printable(path, 4096), sizeof address.sun_path - 1);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size());
  TRY(ClearPath(path, address));
  Listener listener =
      TRY(BindAndListen(OpenSocket(AF_UNIX), reinterpret_cast<const sockaddr*>(&address),
                        sizeof address, "'" + Printable(path, 4096) + "'"));
  listener.unlink = path;
  return listener;
}

Result<std::vector<Listener>> ListenTcp(std::string_view text) {
  HostPort where = TRY(Split(text));
  const bool any = where.host == "*";
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = any ? AI_PASSIVE : 0;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(where.host.empty() || any ? nullptr : where.host.c_str(),
                                 where.port.c_str(), &hints, &found);
  if (failed) {
    return Fail(Code::kIo, "address '{}': {}", Printable(text), gai_strerror(failed));
  }
  std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  std::vector<Listener> listeners;
  for (addrinfo* each = found; each; each = each->ai_next) {
    Fd fd = OpenSocket(each->ai_family);
    // A machine without IPv6.
    if (!fd && errno == EAFNOSUPPORT && each->ai_next) continue;
    const int on = 1;
    setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (each->ai_family == AF_INET6) {
      setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    }
    auto listener = BindAndListen(std::move(fd), each->ai_addr, each->ai_addrlen, Printable(text));
    // An address of a family that is compiled in and not configured.
    if (!listener && listener.error().errno_value() == EADDRNOTAVAIL && found->ai_next) continue;
    listeners.push_back(TRY(std::move(listener)));
  }
  if (listeners.empty()) {
    return Fail(Code::kIo, "address '{}': none of its addresses is this machine's",
                Printable(text));
  }
  return listeners;
}

Result<Listener> ListenVsock(uint32_t port) {
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port;
  Listener listener =
      TRY(BindAndListen(OpenSocket(AF_VSOCK), reinterpret_cast<const sockaddr*>(&address),
                        sizeof address, fmt::format("vsock:{}", port)));
  listener.loopback = true;  // this machine and its own guests
  return listener;
}

Result<std::vector<Listener>> TakeActivated() {
  const char *pid = std::getenv("LISTEN_PID"), *count = std::getenv("LISTEN_FDS");
  const bool ours = pid && count && std::atol(pid) == getpid();
  const int number = ours ? std::atoi(count) : 0;
  unsetenv("LISTEN_PID");
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_FDNAMES");
  std::vector<Listener> listeners;
  for (int fd = kFirstActivated; fd < kFirstActivated + number; ++fd) {
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0) return FailErrno(errno, "socket {} of LISTEN_FDS", fd);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    listeners.push_back(TRY(Finish(Fd(fd), fmt::format("{} of LISTEN_FDS", fd))));
  }
  return listeners;
}

std::string PeerOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "unknown";
  if (address.ss_family != AF_UNIX) return TextOf(address, size);
  ucred who{};
  socklen_t who_size = sizeof who;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &who_size) != 0) return "unix";
  return fmt::format("unix:pid={},uid={}", who.pid, who.uid);
}

}  // namespace platter::nbd
