// Sockets on which the server waits for clients.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/fd.h"

namespace platter::nbd {

// A listening socket, non-blocking.
struct Listener {
  Fd fd;
  std::string address;   // for messages: "/run/x.sock", "127.0.0.1:10809", "vsock:10809"
  std::string unlink;    // path of a socket that is ours to remove; else empty
  bool loopback = true;  // cannot be reached from other machines
};

// A socket file at `path`. One that nobody listens on any more gives way; kRefused if somebody
// does, or if something else is there.
Result<Listener> ListenUnix(const std::string& path);

// "HOST:PORT", "HOST", ":PORT", "[::1]:PORT": one listener for each address of the host. No host
// means loopback, "*" every address of this machine; no port means 10809. kIo, kOutOfRange.
Result<std::vector<Listener>> ListenTcp(std::string_view address);

// A port of a virtual machine's socket, for any context id. kIo.
Result<Listener> ListenVsock(uint32_t port);

// What systemd hands over (LISTEN_PID, LISTEN_FDS): empty if that is nothing. The variables are
// gone afterwards. kIo for what is no listening socket.
Result<std::vector<Listener>> TakeActivated();

// Address of the client on an accepted socket, for messages.
std::string PeerOf(int fd);

}  // namespace platter::nbd
