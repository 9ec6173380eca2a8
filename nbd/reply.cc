#include "nbd/reply.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace platter::nbd {
namespace {

// Writes the header of a chunk with `length` bytes of payload to the start of `at`.
void PutHeader(Bytes at, const Request& request, ChunkType type, bool last, uint64_t length) {
  const uint16_t flags = last ? kReplyDone : 0;
  if (request.style == Style::kExtended) {
    StoreAt(at, 0,
            ExtendedReply{kExtendedReplyMagic, flags, type, request.cookie, request.wire_offset,
                          length});
  } else {
    StoreAt(at, 0,
            StructuredReply{kStructuredReplyMagic, flags, type, request.cookie,
                            static_cast<uint32_t>(length)});
  }
}

// The start of a chunk: its header and `here` bytes of payload, which are returned; `later` bytes
// follow.
Bytes StartChunk(Outbox& out, const Request& request, ChunkType type, bool last, size_t here,
                 uint64_t later) {
  CHECK(request.style != Style::kSimple);
  const size_t header = HeaderSize(request.style);
  Bytes chunk = out.Append(header + here);
  PutHeader(chunk, request, type, last, here + later);
  return chunk.subspan(header);
}

// A chunk with `length` bytes of payload, which are returned.
Bytes AppendChunk(Outbox& out, const Request& request, ChunkType type, bool last, size_t length) {
  return StartChunk(out, request, type, last, length, 0);
}

}  // namespace

void Request::Own() {
  if (payload.empty() || payload.data() == memory.data()) return;
  memory = Memory(payload.size());
  std::ranges::copy(payload, memory.data());
  payload = memory.bytes();
}

size_t HeaderSize(Style style) {
  switch (style) {
    case Style::kSimple: return sizeof(SimpleReply);
    case Style::kStructured: return sizeof(StructuredReply);
    case Style::kExtended: break;
  }
  return sizeof(ExtendedReply);
}

void ReplyDone(Outbox& out, const Request& request) {
  // Structured clients take simple replies too, but for READ.
  const bool simple = request.style == Style::kSimple ||
                      (request.style == Style::kStructured && request.command != kCmdRead);
  if (simple) {
    out.Put(SimpleReply{kSimpleReplyMagic, 0u, request.cookie});
  } else {
    AppendChunk(out, request, kChunkNone, true, 0);
  }
}

void ReplyError(Outbox& out, const Request& request, ErrorValue error, std::string_view message) {
  if (request.style == Style::kSimple) {
    out.Put(SimpleReply{kSimpleReplyMagic, error, request.cookie});
    return;
  }
  message = message.substr(0, kMostString);
  Bytes payload = AppendChunk(out, request, kChunkError, true, sizeof(ErrorChunk) + message.size());
  StoreAt(payload, 0, ErrorChunk{error, static_cast<uint16_t>(message.size())});
  std::ranges::copy(AsBytes(message), payload.subspan(sizeof(ErrorChunk)).begin());
}

ErrorValue ToErrorValue(const Error& error) {
  switch (error.code()) {
    case Code::kNoSpace: return kNoSpaceLeft;
    case Code::kReadOnly:
    case Code::kRefused: return kPermission;
    case Code::kOutOfRange:
    case Code::kUnsupported: return kInvalid;
    case Code::kIo:
    case Code::kCorrupt: break;
  }
  return error.errno_value() == ENOMEM ? kNoMemory : kIoError;
}

void StartData(Outbox& out, const Request& request, uint64_t offset, uint32_t size, bool last) {
  if (request.style == Style::kSimple) {
    out.Put(SimpleReply{kSimpleReplyMagic, 0u, request.cookie});
    return;
  }
  Bytes payload = StartChunk(out, request, kChunkData, last, sizeof(OffsetData), size);
  StoreAt(payload, 0, OffsetData{offset});
}

// The bytes for the caller are a piece of their own, so that long ones start with a page.
Bytes AppendData(Outbox& out, const Request& request, uint64_t offset, uint32_t size, bool last) {
  StartData(out, request, offset, size, last);
  return out.Append(size);
}

void AppendHole(Outbox& out, const Request& request, uint64_t offset, uint32_t size, bool last) {
  Bytes payload = AppendChunk(out, request, kChunkHole, last, sizeof(OffsetHole));
  StoreAt(payload, 0, OffsetHole{offset, size});
}

void AppendStatus(Outbox& out, const Request& request, uint32_t context,
                  std::span<const Status> runs, bool last) {
  if (request.style == Style::kExtended) {
    Bytes payload = AppendChunk(out, request, kChunkStatus64, last,
                                sizeof(StatusHeader64) + runs.size() * sizeof(StatusDescriptor64));
    StoreAt(payload, 0, StatusHeader64{context, static_cast<uint32_t>(runs.size())});
    for (size_t at = sizeof(StatusHeader64); const Status& run : runs) {
      StoreAt(payload, at, StatusDescriptor64{run.length, run.status});
      at += sizeof(StatusDescriptor64);
    }
    return;
  }
  Bytes payload = AppendChunk(out, request, kChunkStatus, last,
                              sizeof(StatusHeader) + runs.size() * sizeof(StatusDescriptor));
  StoreAt(payload, 0, StatusHeader{context});
  for (size_t at = sizeof(StatusHeader); const Status& run : runs) {
    StoreAt(payload, at,
            StatusDescriptor{static_cast<uint32_t>(run.length), static_cast<uint32_t>(run.status)});
    at += sizeof(StatusDescriptor);
  }
}

}  // namespace platter::nbd
