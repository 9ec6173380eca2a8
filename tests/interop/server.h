// Servers for tests: real programs, on ports and sockets of their own, gone with the test.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace platter::testing_support {

// A TCP port of 127.0.0.1 (and the UDP port of the same number) on which nobody listens.
uint16_t FreePort();

class Server {
 public:
  struct Ready {
    uint16_t tcp = 0, udp = 0;  // until this port is listened on,
    std::string socket;         // or this Unix socket
  };
  // Runs a shell command, which must not put itself into the background, and waits until it is
  // ready. Fails the test, with what the program printed, if that takes 20 seconds.
  Server(const std::string& command, const Ready& ready);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  void Stop();  // SIGTERM, and waits; nothing if it has ended
  void Kill();  // SIGKILL, and waits

 private:
  void End(int signal);

  pid_t pid_ = -1;
  std::string log_;
};

}  // namespace platter::testing_support
