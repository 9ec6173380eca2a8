// ClientConnection: requests and replies with one server, any number in flight, from any thread.
//
// There is no thread of its own: of those that wait for replies one reads, hands out what belongs
// to the others, and passes the task on when its own reply is there. A lone request is thus sent
// and answered in one thread.
//
// Locks, in this order: send_ (one request goes out at a time, in the order of their cookies),
// state_.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/range.h"
#include "base/result.h"
#include "base/sync.h"
#include "io/buffer.h"
#include "nbd/client/handshake.h"
#include "nbd/nbd_wire.h"

namespace platter::nbd {

// What BLOCK_STATUS says of a part, in order and without gaps.
struct StatusRun {
  uint64_t length = 0;
  uint64_t status = 0;  // kStateHole, kStateZero
};

// A request, and what came of it. Lives until Perform returns.
struct Call {
  Command command = kCmdRead;
  uint16_t flags = 0;
  Range range;
  std::span<const iovec> from;             // kCmdWrite
  std::span<const iovec> into;             // kCmdRead
  std::vector<StatusRun>* runs = nullptr;  // kCmdBlockStatus

  uint32_t error = 0;   // ErrorValue: what the server says
  std::string message;  // its words, printable

  void Reset();  // as before Perform

 private:
  friend class ClientConnection;
  enum State : uint8_t { kOpen, kAnswered, kLost } state = kOpen;
  std::map<uint64_t, uint64_t> covered;  // of a READ: begin to end, disjoint and not touching
  CondVar wake;
};

class ClientConnection {
 public:
  explicit ClientConnection(Opened opened);
  ~ClientConnection();  // says goodbye; no call is running

  const Agreed& agreed() const { return agreed_; }

  // Sends the request and waits for the answer: true if there is one, be it an error. False if the
  // connection was lost before; whether the server did what was asked is unknown then.
  bool Perform(Call& call);

  // Calls that wait for answers.
  size_t in_flight() const;

  // Why it was lost; nothing while it lives.
  std::optional<Error> problem() const;

  // As if it were lost.
  void Close(Error why);

 private:
  Result<> Send(const Call& call, uint64_t cookie);  // under send_
  void Await(Call& call);
  void LoseAllLocked();
  Result<> ReceiveReply();
  Result<> ReceiveSimple();
  Result<> ReceiveChunk(uint32_t magic);
  Result<Call*> Find(uint64_t cookie);
  Result<> TakeChunk(Call& call, uint16_t type, uint64_t length);
  Result<> TakeData(Call& call, uint64_t length);
  Result<> TakeHole(Call& call, uint64_t length);
  template <class Header, class Descriptor>
  Result<> TakeStatus(Call& call, uint64_t length);
  Result<> TakeError(Call& call, uint16_t type, uint64_t length);
  Result<> Finish(uint64_t cookie, Call& call);

  template <class T>
  Result<T> Take();
  Result<> Read(Bytes into);
  Result<> ReadInto(std::span<const iovec> into, Range part);
  Result<> Skip(uint64_t length);

  const Agreed agreed_;
  const std::unique_ptr<Stream> stream_;

  Mutex send_;

  mutable Mutex state_;  // guards what follows; a leaf
  std::map<uint64_t, Call*> calls_;
  uint64_t next_cookie_ = 0;
  bool reading_ = false;  // somebody does
  std::optional<Error> problem_;

  // Of whoever reads.
  Buffer buffer_;
  Bytes received_;  // what of buffer_ was not used yet
};

}  // namespace platter::nbd
