// Journal: changes of metadata through the log, one entry each, so that a crash leaves all of it or
// nothing.
//
// The log is used as a ring. Each entry names itself as its tail: whoever commits has synced the
// file since the last commit, so that what the entries before it say is in place. The entry before
// stays whole until the new one is durable: an entry takes at most half of the ring.
//
// The headers say that there is a log once the first entry is durable, and that there is none after
// Close, so a log that is named always holds a whole entry.
//
// Source: [MS-VHDX] section 2.3.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "formats/vhdx/vhdx_image.h"
#include "formats/vhdx/vhdx_parse.h"
#include "io/store.h"

namespace platter::vhdx {

// One thread at a time.
class Journal {
 public:
  // Both outlive the journal.
  Journal(Store& file, Headers& headers)
      : file_(file), headers_(headers), log_length_(headers.current.log.length) {}

  // Whether the log is there and large enough.
  Result<> CheckLog() const;

  // The most pages that one Commit takes. Any thread.
  uint64_t capacity() const;

  // Writes `pages` (4 KiB each, ascending) and zeros to `zeros` (whole pages). The caller has
  // synced the file since the last Commit, at which time it had `synced_size` bytes. After an error
  // the caller comes again with the same pages, changed or not, and maybe more.
  Result<> Commit(const std::vector<LogPage>& pages, const std::vector<Range>& zeros,
                  uint64_t synced_size);

  // Makes what was committed durable in place, and the log empty. `erase`: what it held goes, too,
  // so that an image does not show how it was made.
  Result<> Close(bool erase);

 private:
  Result<> WriteRing(ConstBytes bytes);
  Result<> WriteInPlace(const std::vector<LogPage>& pages, const std::vector<Range>& zeros);

  Store& file_;
  Headers& headers_;
  const uint64_t log_length_;  // bytes
  ImageId id_{};               // of our entries; nil before the first
  uint64_t next_ = 0;          // bytes from the log's start: where the next entry goes
  uint64_t sequence_ = 1;      // of the next entry
};

}  // namespace platter::vhdx
