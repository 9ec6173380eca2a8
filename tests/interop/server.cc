#include "tests/interop/server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

namespace platter::testing_support {
namespace {

sockaddr_in Loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

bool Bind(int type, uint16_t& port) {
  int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
  sockaddr_in address = Loopback(port);
  socklen_t length = sizeof address;
  bool bound = bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
               getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  port = ntohs(address.sin_port);
  close(fd);
  return bound;
}

bool Connects(int family, const sockaddr* address, socklen_t length) {
  int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  bool connected = connect(fd, address, length) == 0;
  close(fd);
  return connected;
}

bool IsReady(const Server::Ready& ready) {
  if (ready.tcp != 0) {
    sockaddr_in address = Loopback(ready.tcp);
    return Connects(AF_INET, reinterpret_cast<sockaddr*>(&address), sizeof address);
  }
  if (!ready.socket.empty()) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, ready.socket.c_str(), sizeof address.sun_path - 1);
    return Connects(AF_UNIX, reinterpret_cast<sockaddr*>(&address), sizeof address);
  }
  uint16_t port = ready.udp;
  return !Bind(SOCK_DGRAM, port);
}

std::string Contents(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

uint16_t FreePort() {
  for (int i = 0; i < 100; ++i) {
    uint16_t port = 0;
    if (Bind(SOCK_STREAM, port) && Bind(SOCK_DGRAM, port)) return port;
  }
  ADD_FAILURE() << "no free port";
  return 0;
}

Server::Server(const std::string& command, const Ready& ready) {
  char log[] = "/tmp/platter-server-XXXXXX";
  int fd = mkostemp(log, O_CLOEXEC);
  log_ = log;
  const std::string script = "exec " + command;
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    execl("/bin/sh", "sh", "-c", script.c_str(), nullptr);
    _exit(127);
  }
  close(fd);
  auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!IsReady(ready)) {
    int status = 0;
    const bool ended = waitpid(pid_, &status, WNOHANG) == pid_;
    if (ended) pid_ = -1;
    if (ended || std::chrono::steady_clock::now() > deadline) {
      ADD_FAILURE() << command << "\ndid not start (a program is missing? `./dev test` installs "
                    << "them):\n"
                    << Contents(log_);
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

Server::~Server() {
  End(SIGTERM);
  if (testing::Test::HasFailure()) ADD_FAILURE() << "the server said:\n" << Contents(log_);
  unlink(log_.c_str());
}

void Server::Stop() { End(SIGTERM); }
void Server::Kill() { End(SIGKILL); }

void Server::End(int signal) {
  if (pid_ < 0) return;
  kill(pid_, signal);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

}  // namespace platter::testing_support
