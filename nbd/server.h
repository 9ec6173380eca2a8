// Server: accepts clients and gives each a thread (connection.h) until it is told to stop.
//
// How a request goes through this folder, from below:
//
//   nbd_wire      the bytes of the protocol
//   session       one client's protocol as a state machine: bytes in, requests out, no I/O
//   answer        a request and an export become a reply: at once from what is in memory, else
//                 by waiting
//   connection    a socket (channel; tls) and a session on a thread of their own; what waits goes
//                 to the workers that all connections share
//   server        the connections
//   image_exports images, their partitions and snapshots under their names
//
// Connections share the disk and nothing else, and the disk has one state for all of them: what one
// has written the others read, and a flush of one is a flush of all (CAN_MULTI_CONN).
//
// Stopping: no further clients; each connection answers what it has received and ends, or is cut
// off after a time; then the threads are joined. Flushing the disks is left to whoever owns them.
#pragma once

#include <atomic>
#include <chrono>
#include <list>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "io/fd.h"
#include "nbd/connection.h"
#include "nbd/listen.h"
#include "nbd/stats.h"

namespace platter::nbd {

struct ServerOptions {
  ConnectionOptions connection;
  unsigned most_connections = 128;  // a further client is let go at once
  unsigned workers = 16;            // threads for what has to wait
  bool exit_after_last = false;     // stop when the last client has left
  std::chrono::milliseconds patience{
      10'000};  // with clients that do not take their replies, at the end
};

class Server {
 public:
  // `exports` outlives the server.
  Server(Exports& exports, ServerOptions options);
  ~Server();

  // Serves clients of `listeners` until `stop` is readable, or the last client has left if that was
  // asked for. All connections are over when it returns. kIo. Called once.
  Result<> Run(std::span<const Listener> listeners, int stop);

  // Any thread.
  const ServerCounters& counters() const { return counters_; }

 private:
  struct Client {
    std::unique_ptr<Connection> connection;
    std::jthread thread;
    std::atomic<bool> over{false};
  };

  Result<> Accept(const Listener& listener);
  void Start(Fd socket);
  void Reap();
  void FinishAll();

  Exports& exports_;
  const ServerOptions options_;
  ServerCounters counters_;
  const Fd ended_;  // eventfd: a client is over
  Workers workers_;
  std::list<Client> clients_;  // of the thread that runs Run
  bool any_accepted_ = false;
};

}  // namespace platter::nbd
