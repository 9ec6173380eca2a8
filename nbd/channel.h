// Channel: a connected socket, plain or with TLS, for the one thread that serves it.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "io/fd.h"
#include "nbd/outbox.h"

namespace platter::nbd {

using Deadline = std::chrono::steady_clock::time_point;

// All calls: one thread. Errors are kIo with errno, and mean that the connection is gone.
class Channel {
 public:
  virtual ~Channel() = default;

  // Bytes received, at least one; 0 at the end of the stream; nothing where that would mean to wait
  // and `wait` is false.
  virtual Result<std::optional<size_t>> Receive(Bytes into, bool wait) = 0;

  // Bytes taken of `from`, without waiting; 0 where the socket takes none now. `more`: others
  // follow at once.
  virtual Result<size_t> Send(std::span<const iovec> from, bool more) = 0;

  // As Send, of bytes of a file, which are not copied. Only where sends_files().
  virtual Result<size_t> SendFile(const FileBytes& from) = 0;
  virtual bool sends_files() const = 0;

  // True while something that Send took is still here: call Send again, with nothing if need be,
  // when the socket takes bytes.
  virtual bool sending() const = 0;

  // Tells the peer that nothing more comes, as far as that needs no waiting.
  virtual void Close() = 0;

  virtual int fd() const = 0;
};

// `fd` is owned by the caller and outlives the channel.
std::unique_ptr<Channel> MakePlainChannel(int fd);

// Waits until `fd` is ready for `events` (POLLIN, POLLOUT): false once `deadline` has passed. kIo.
Result<bool> WaitFor(int fd, short events, Deadline deadline);

}  // namespace platter::nbd
