#include "nbd/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/bytes.h"

namespace platter::nbd {
namespace {

// What there is room for on the way to a client that reads slowly; the system may give less.
constexpr int kSocketBuffer = 4 << 20;

void SetUp(int fd) {
  const int on = 1;
  // Fails on sockets that are not TCP, where there is nothing to set.
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // A machine that is gone is noticed in the end.
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  // As root past the system's limit.
  if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &kSocketBuffer, sizeof kSocketBuffer) != 0) {
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBuffer, sizeof kSocketBuffer);
  }
}

}  // namespace

Server::Server(Exports& exports, ServerOptions options)
    : exports_(exports),
      options_(std::move(options)),
      ended_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      workers_(options_.workers) {}

Server::~Server() { FinishAll(); }

Result<> Server::Run(std::span<const Listener> listeners, int stop) {
  std::vector<pollfd> polled{{stop, POLLIN, 0}, {ended_.get(), POLLIN, 0}};
  for (const Listener& listener : listeners) polled.push_back({listener.fd.get(), POLLIN, 0});
  while (true) {
    if (poll(polled.data(), polled.size(), -1) < 0) {
      if (errno == EINTR) continue;
      return FailErrno(errno, "waiting for clients");
    }
    if (polled[1].revents != 0) Reap();
    if (polled[0].revents != 0) break;
    if (options_.exit_after_last && any_accepted_ && clients_.empty()) break;
    for (size_t i = 0; i < listeners.size(); ++i) {
      if (polled[i + 2].revents != 0) TRY(Accept(listeners[i]));
    }
  }
  FinishAll();
  return {};
}

Result<> Server::Accept(const Listener& listener) {
  Fd socket(accept4(listener.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket) {
    const int error = errno;
    if (error == EBADF || error == EINVAL || error == ENOTSOCK) {
      return FailErrno(error, "accepting a client on {}", listener.address);
    }
    // The client thought better of it, or its network is gone (which accept tells of, too), or the
    // system is short of something for now.
    if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return {};
  }
  if (clients_.size() >= options_.most_connections) Reap();
  if (clients_.size() >= options_.most_connections) {
    counters_.refused.fetch_add(1);
    if (options_.connection.log) {
      options_.connection.log(PeerOf(socket.get()) + ": too many connections");
    }
    return {};
  }
  Start(std::move(socket));
  return {};
}

void Server::Start(Fd socket) {
  SetUp(socket.get());
  any_accepted_ = true;
  std::string peer = PeerOf(socket.get());
  auto connection = std::make_unique<Connection>(std::move(socket), std::move(peer), exports_,
                                                 workers_, options_.connection);
  if (!connection->usable()) {
    counters_.refused.fetch_add(1);
    return;
  }
  counters_.accepted.fetch_add(1);
  counters_.open.fetch_add(1);
  Client& client = clients_.emplace_back();
  client.connection = std::move(connection);
  try {
    client.thread = std::jthread([this, &client] {
      client.connection->Run();
      counters_.open.fetch_sub(1);
      client.over.store(true);
      eventfd_write(ended_.get(), 1);
    });
  } catch (const std::system_error&) {
    // The system has no thread for it.
    clients_.pop_back();
    counters_.open.fetch_sub(1);
    counters_.refused.fetch_add(1);
  }
}

void Server::Reap() {
  eventfd_t ignored;
  eventfd_read(ended_.get(), &ignored);
  std::erase_if(clients_, [](Client& client) {
    if (!client.over.load()) return false;
    client.thread.join();
    return true;
  });
}

void Server::FinishAll() {
  for (Client& client : clients_) client.connection->Finish();
  const Deadline deadline = std::chrono::steady_clock::now() + options_.patience;
  while (!clients_.empty()) {
    auto more = WaitFor(ended_.get(), POLLIN, deadline);
    if (!more || !*more) break;
    Reap();
  }
  for (Client& client : clients_) client.connection->Abort();
  for (Client& client : clients_) client.thread.join();
  clients_.clear();
}

}  // namespace platter::nbd
