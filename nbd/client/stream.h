// Stream: the bytes to and from a server, plain or through TLS.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <memory>
#include <span>

#include "base/bytes.h"
#include "base/result.h"
#include "nbd/client/uri.h"

namespace platter::nbd {

// One thread may read while another writes; Shutdown: any thread. Errors are kIo, and after one the
// stream is of no more use.
class Stream {
 public:
  virtual ~Stream() = default;
  // At least one byte; what there is, up to all of `into`. The end of the stream is an error.
  virtual Result<size_t> ReadSome(Bytes into) = 0;
  // All of it.
  virtual Result<> Write(std::span<const iovec> from) = 0;
  // Makes running and later calls fail soon.
  virtual void Shutdown() = 0;
  // Calls that wait longer than this for the other side fail; 0: they wait for ever.
  virtual void SetPatience(std::chrono::milliseconds patience) = 0;
  virtual int fd() const = 0;

  Result<> Read(Bytes into);        // all of it
  Result<> Write(ConstBytes from);  // one span
};

// A connected socket. The connection is noticed to be gone within about a minute where the other
// machine has vanished without a word. kIo.
Result<std::unique_ptr<Stream>> Connect(const Uri& uri, std::chrono::milliseconds patience);

// Puts TLS (1.2 or later) around `plain`, whose connection it takes over. kRefused if the server
// is not who the URI says or does not know us; kIo.
Result<std::unique_ptr<Stream>> StartTls(std::unique_ptr<Stream> plain, const Uri& uri);

}  // namespace platter::nbd
