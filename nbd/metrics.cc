#include "nbd/metrics.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <string_view>
#include <utility>

#include "nbd/channel.h"

namespace platter::nbd {
namespace {

constexpr size_t kMostRequest = 8192;  // bytes of a request's head
constexpr auto kPatience = std::chrono::seconds(2);

// The head of a request; empty if it did not come in time or is too long.
std::string ReadHead(int client, Deadline deadline) {
  std::string head;
  std::array<char, 1024> part;
  while (head.find("\r\n\r\n") == head.npos && head.size() < kMostRequest) {
    auto ready = WaitFor(client, POLLIN, deadline);
    if (!ready || !*ready) return "";
    ssize_t count = recv(client, part.data(), part.size(), MSG_DONTWAIT);
    if (count <= 0) return "";
    head.append(part.data(), static_cast<size_t>(count));
  }
  return head;
}

void SendAll(int client, std::string_view text, Deadline deadline) {
  while (!text.empty()) {
    auto ready = WaitFor(client, POLLOUT, deadline);
    if (!ready || !*ready) return;
    ssize_t count = send(client, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count <= 0) return;
    text.remove_prefix(static_cast<size_t>(count));
  }
}

}  // namespace

Metrics::Metrics(std::vector<Listener> listeners, Text metrics, Text stats)
    : listeners_(std::move(listeners)),
      metrics_(std::move(metrics)),
      stats_(std::move(stats)),
      stop_(eventfd(0, EFD_CLOEXEC)),
      thread_([this] { Run(); }) {}

Metrics::~Metrics() { eventfd_write(stop_.get(), 1); }

void Metrics::Run() {
  std::vector<pollfd> polled{{stop_.get(), POLLIN, 0}};
  for (const Listener& listener : listeners_) polled.push_back({listener.fd.get(), POLLIN, 0});
  while (true) {
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    if (polled[0].revents != 0) return;
    for (const pollfd& one : polled) {
      if (one.revents == 0) continue;
      Fd client(accept4(one.fd, nullptr, nullptr, SOCK_CLOEXEC));
      if (client) Answer(client.get());
    }
  }
}

void Metrics::Answer(int client) {
  const Deadline deadline = std::chrono::steady_clock::now() + kPatience;
  const std::string head = ReadHead(client, deadline);
  if (head.empty()) return;
  std::string_view status = "200 OK", type = "text/plain; version=0.0.4; charset=utf-8";
  std::string body;
  if (head.starts_with("GET /metrics ")) {
    body = metrics_();
  } else if (head.starts_with("GET /stats ")) {
    type = "application/json";
    body = stats_();
  } else {
    status = "404 Not Found";
    body = "There is /metrics, and /stats.\n";
  }
  SendAll(client,
          fmt::format("HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n"
                      "Connection: close\r\n\r\n{}",
                      status, type, body.size(), body),
          deadline);
}

}  // namespace platter::nbd
