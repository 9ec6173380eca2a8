// Connection: one client, served by one thread.
//
// The thread receives as much as there is, answers each request that needs no waiting, and sends
// all replies at once: in the best case two system calls for dozens of requests. What has to wait
// goes to the workers, whose replies come back to this thread, which alone touches the socket and
// the session. A request that is the only one there is may wait on this thread: nobody is kept, and
// the hand-over is saved. The same goes for writes while they have been quick (they go to the page
// cache) and the client is none the slower for them; and for what finds all workers busy: whoever
// asks for much that takes long keeps itself waiting, and not the others.
//
// A client that asks for one thing at a time spends most of it on being woken, as we do. So we look
// for its next request for a short time before we go to sleep, as long as that has been worth it
// and there are processors to spare.
//
// Memory: what the client has in flight (payloads, replies being made, replies not yet taken) is
// counted; above the window no further request is looked at, whatever has been received. One
// request is always let in, so the bound is the window and the largest request.
//
// Bytes that are copied go through memory that was used before (memory.h): a fresh page costs more
// than filling it. Long reads of plain data in files that nobody writes need not be copied at all:
// sendfile lends the file's pages to the socket (file_bytes.h says why only of such files), for a
// fifth of the processor's time. That is done where processors are short. Where they are not, one
// copying from the file while the other, the client, copies from the socket is quicker, and very
// much so for clients with buffers just behind the start of a page (see outbox.cc).
//
// A client that does not read its replies stops its own thread and nobody else's.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <memory>
#include <string>

#include "base/sync.h"
#include "io/fd.h"
#include "nbd/answer.h"
#include "nbd/channel.h"
#include "nbd/session.h"
#include "nbd/tls.h"
#include "nbd/workers.h"

namespace platter::nbd {

struct ConnectionOptions {
  SessionOptions session;
  const TlsContext* tls = nullptr;  // set unless session.tls is kNone
  uint64_t window = 16 << 20;       // bytes
  std::chrono::milliseconds handshake_limit{10'000};
  std::function<void(const std::string&)> log;  // one line; any thread
  ErrorLog error_log;
};

class Connection {
 public:
  // `peer`: how messages call it. All references outlive the connection.
  Connection(Fd socket, std::string peer, Exports& exports, Workers& workers,
             const ConnectionOptions& options);
  ~Connection();

  // False if the system had no descriptor left for it: it must not be run.
  bool usable() const { return static_cast<bool>(wake_); }

  // Serves until the client has left. Called once, by the connection's own thread.
  void Run();

  // Any thread: no further bytes are received; what has been is answered, and Run returns.
  void Finish();
  // Any thread: Run returns as soon as requests that are being dealt with are, or are given up
  // where they take long.
  void Abort();

 private:
  struct Done {
    uint64_t cost;
    Outbox reply;
  };

  Result<> Serve();
  Result<> HandleEvents();
  Result<> Handle(Request& request);
  void HandOver(Request&& request);
  bool WorthDoingHere(const Request& request);
  void AnswerHere(const Request& request);
  void TakeDone();
  Result<> Send();
  Result<> SendAll();
  Result<bool> Receive(bool wait);
  Result<bool> ReceiveSoon();
  Result<> Wait();
  Result<> StartTls();
  bool Full() const { return flying_bytes_ + out_.size() > options_.window; }
  int PollTimeout() const;

  const Fd socket_;
  const std::string peer_;
  Workers& workers_;
  const ConnectionOptions& options_;
  const Deadline handshake_deadline_;
  std::unique_ptr<Channel> channel_;
  Outbox out_;
  Session session_;

  bool ending_ = false;        // nothing more is received
  bool hungry_ = false;        // the session needs more bytes to go on
  uint64_t flying_ = 0;        // requests with the workers
  uint64_t flying_bytes_ = 0;  // and what they cost
  unsigned writes_to_hand_over_ = 0;
  // Waits in which it is not worth staying awake: how many, and how many the next time that it was
  // not.
  unsigned spins_to_skip_ = 0, next_skip_ = 1;

  const Fd wake_;  // eventfd: something is in done_, or stopping_ was set
  std::atomic<bool> stopping_{false};
  std::atomic<bool> aborted_{false};
  Mutex mutex_;  // guards done_; a leaf
  std::deque<Done> done_;
};

}  // namespace platter::nbd
