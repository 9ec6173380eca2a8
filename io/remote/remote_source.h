// RemoteSource: a file on a server that hands out any part of it. CachedStore makes a Store of it.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace platter {

// Thread rule: any thread, any number of calls at once.
class RemoteSource {
 public:
  virtual ~RemoteSource() = default;

  // Of the URL, printable (DescribeUrl).
  virtual const std::string& name() const = 0;

  // The whole URL, which name() need not be: it may hold what nobody else is to see.
  virtual const std::string& url() const = 0;

  virtual uint64_t size() const = 0;  // bytes, as at open

  // What tells this content from what the URL may name later, as the server says it (an ETag, a
  // time); empty where it says nothing.
  virtual const std::string& version() const = 0;

  // Bytes that a request should ask for at least, since it costs so much.
  virtual uint64_t worthwhile() const = 0;

  // Fills all of `into`, which lies inside the file. Tries again where that may help. kIo; kCorrupt
  // if the file is no longer the one that was opened.
  virtual Result<> Fetch(uint64_t at, Bytes into) = 0;

  // Makes running and later calls of Fetch fail soon.
  virtual void Stop() = 0;
};

}  // namespace platter
