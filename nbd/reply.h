// Requests as the session has checked them, and replies as they are written for it.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "nbd/memory.h"
#include "nbd/nbd_wire.h"
#include "nbd/outbox.h"

namespace platter::nbd {

// How the client wants its replies, as agreed in the handshake.
enum class Style : uint8_t { kSimple, kStructured, kExtended };

// A request that is good: of a command that the export allows, inside it, with flags that exist.
struct Request {
  Command command = kCmdRead;
  uint16_t flags = 0;
  Style style = Style::kSimple;
  uint64_t cookie = 0;
  uint64_t wire_offset = 0;  // as sent, for extended replies
  Range range;               // of the export, bytes; of a RESIZE the new size, as an offset
  ConstBytes payload;        // of a WRITE: in `memory`, or in the session until its next Received
  Memory memory;
  // Of a BLOCK_STATUS: the contexts that are wanted, as indexes into Export::contexts.
  std::vector<uint32_t> contexts;
  // Set when nobody waits for the answer any more; null: somebody always does.
  const std::atomic<bool>* aborted = nullptr;

  bool Has(CommandFlag flag) const { return (flags & flag) != 0; }
  // Makes it independent of the session.
  void Own();
};

// Bytes before the payload of a chunk (or of a simple reply).
size_t HeaderSize(Style style);

// Success of a request that has no data to return.
void ReplyDone(Outbox& out, const Request& request);

// `message`: for the user of the client; simple replies cannot carry it.
void ReplyError(Outbox& out, const Request& request, ErrorValue error, std::string_view message);

// What the client is told of an error of ours: no paths and no offsets of the host.
ErrorValue ToErrorValue(const Error& error);

// READ: what comes before `size` bytes from `offset` of the export, which the caller appends. In
// the simple style there is one piece, the whole request.
void StartData(Outbox& out, const Request& request, uint64_t offset, uint32_t size, bool last);
// With the bytes, for the caller to fill.
Bytes AppendData(Outbox& out, const Request& request, uint64_t offset, uint32_t size, bool last);
// READ, not in the simple style: a run that reads as zeros.
void AppendHole(Outbox& out, const Request& request, uint64_t offset, uint32_t size, bool last);

// BLOCK_STATUS: what one context says, as runs from the start of the request on.
struct Status {
  uint64_t length;  // bytes
  uint64_t status;
};
void AppendStatus(Outbox& out, const Request& request, uint32_t context,
                  std::span<const Status> runs, bool last);

}  // namespace platter::nbd
