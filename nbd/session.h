// Session: one client's side of the NBD protocol as a state machine without I/O.
//
// Bytes from the client go in by Room and Received, whatever the pieces in which they arrive. Next
// says what they mean: a request to be answered, the start of TLS, or the end. What the session
// says itself (the whole handshake, and errors of requests that are not good) it appends to the
// outbox; replies to good requests are the driver's, by answer.h. So the same code is driven by a
// socket, by a test byte by byte, and by a fuzzer.
//
// Phases: greeting and client flags; options (session_options.cc), each answered before the next is
// looked at; transmission. What the client may make us hold: an option's data up to kMostOption,
// and the payload of one request; more is refused, or skipped unread, or ends the session.
//
// Before TLS nothing that was agreed counts (STARTTLS begins anew), and bytes that arrived with
// STARTTLS but before TLS end the session: whoever sits in between may have put them there.
//
// Source: see nbd_wire.h.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "io/buffer.h"
#include "nbd/export.h"
#include "nbd/outbox.h"
#include "nbd/reply.h"

namespace platter::nbd {

enum class TlsPolicy : uint8_t { kNone, kOffered, kRequired };

struct SessionOptions {
  TlsPolicy tls = TlsPolicy::kNone;
};

// Used by one thread.
class Session {
 public:
  // Greets at once. Both outlive the session.
  Session(Exports& exports, const SessionOptions& options, Outbox& out);

  // Where the next bytes of the client go; not empty. Received says how many came. Neither while a
  // request is being looked at whose payload is here.
  Bytes Room();
  void Received(size_t size);

  enum class Event : uint8_t {
    kMore,      // nothing to do before more bytes arrive
    kRequest,   // see request()
    kStartTls,  // send what is in the outbox, then speak TLS, then call TlsStarted
    kEnd,       // send what is in the outbox, then close; failure() says why
  };
  Event Next();

  // Of the last kRequest; the driver may move it away. Its payload: see Request.
  Request& request() { return request_; }

  void TlsStarted();

  bool transmitting() const { return phase_ == Phase::kTransmission; }
  // While transmitting.
  const std::shared_ptr<Export>& chosen() const { return chosen_; }
  // True if no byte is here that Next has not dealt with.
  bool idle() const { return begin_ == end_ && !payload_wanted_ && skip_ == 0; }
  // Why the session ended; empty if the client left as it should.
  const std::string& failure() const { return failure_; }

 private:
  enum class Phase : uint8_t { kClientFlags, kOptions, kTransmission, kStartingTls, kEnded };

  Event End(std::string why);
  ConstBytes Pending() const {
    return std::as_const(input_).bytes().subspan(begin_, end_ - begin_);
  }
  // Goes past `size` bytes that come next, as far as they are here.
  bool SkipPending();

  // session_options.cc
  std::optional<Event> NextClientFlags();
  std::optional<Event> NextOption();
  Event DoOption(uint32_t option, ConstBytes data);
  Event DoExportName(ConstBytes data);
  Event DoInfo(uint32_t option, ConstBytes data);
  void DoList(ConstBytes data);
  void DoMetaContext(uint32_t option, ConstBytes data);
  void DoExtension(uint32_t option, ConstBytes data);
  Event DoStartTls(ConstBytes data);
  bool SelectContexts(uint32_t option, const Export& of, ConstBytes queries, uint32_t count);
  void Reply(uint32_t option, uint32_t type, ConstBytes data = {});
  void ReplyText(uint32_t option, uint32_t type, std::string_view text);
  void Enter(std::shared_ptr<Export> chosen);
  uint16_t TransmissionFlags(const Export& of, bool resize) const;

  // session.cc
  std::optional<Event> NextRequest();
  std::optional<Event> TakeHeader(uint64_t& payload);
  std::optional<Event> TakePayload();
  // Why the request cannot be; nothing if it can.
  struct Refusal {
    ErrorValue error;
    std::string_view text;
  };
  std::optional<Refusal> Check(uint64_t payload) const;
  std::optional<Refusal> CheckRange() const;
  std::optional<Refusal> TakeContexts();
  std::optional<Event> Deliver();

  Exports& exports_;
  const SessionOptions options_;
  Outbox& out_;

  Phase phase_ = Phase::kClientFlags;
  Buffer input_;
  size_t begin_ = 0, end_ = 0;  // of what is in input_ and not dealt with
  uint64_t skip_ = 0;           // bytes to come that mean nothing

  // Agreed in the handshake.
  bool fixed_ = false, zeroes_ = true, tls_ = false;
  Style style_ = Style::kSimple;
  std::shared_ptr<Export> described_;  // of the last SET_META_CONTEXT
  std::vector<uint32_t> contexts_;     // selected of it
  std::shared_ptr<Export> chosen_;
  bool resize_ = false;  // kCmdResize is agreed

  Request request_;
  uint64_t payload_wanted_ = 0;  // bytes of request_.memory; 0: not waiting for any
  uint64_t payload_here_ = 0;
  bool large_ = false;  // the last payload was not read through input_
  std::string failure_;
};

}  // namespace platter::nbd
