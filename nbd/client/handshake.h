// The client's part of the handshake: from a connected socket to an export.
//
// What is asked for, in this order: TLS (if the URI says so: it is had or all ends), extended
// headers, else structured replies, the context "base:allocation", and the export by GO; of servers
// that know no GO by EXPORT_NAME. Servers that greet in the old style, without any choice, are
// taken as well, but never where TLS is wanted.
//
// Source: doc/proto.md of NetworkBlockDevice/nbd, "Handshake".
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "base/result.h"
#include "nbd/client/stream.h"
#include "nbd/client/uri.h"

namespace platter::nbd {

// What both sides agreed on.
struct Agreed {
  uint64_t size = 0;   // bytes of the export
  uint16_t flags = 0;  // TransmissionFlag
  bool structured = false, extended = false;
  std::optional<uint32_t> allocation;  // id of the context "base:allocation"
  // Bytes: requests are multiples of `minimum` and carry `most_payload` at most.
  uint32_t minimum = 1, preferred = 4096, most_payload = 32 << 20;

  bool has(uint16_t flag) const { return (flags & flag) != 0; }
};

struct Opened {
  std::unique_ptr<Stream> stream;
  Agreed agreed;
};

// Connects and shakes hands; each step takes `patience` at most. kIo, kRefused (what the server
// says, TLS), kUnsupported.
Result<Opened> OpenExport(const Uri& uri, std::chrono::milliseconds patience);

// The same on a stream that is there already.
Result<Opened> ShakeHands(const Uri& uri, std::unique_ptr<Stream> stream);

}  // namespace platter::nbd
