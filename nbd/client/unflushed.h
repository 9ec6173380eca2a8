// Unflushed: copies of the writes that a server has answered but not yet flushed, in the order in
// which they were answered.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <span>

#include "base/range.h"
#include "base/result.h"
#include "base/sync.h"
#include "io/buffer.h"

namespace platter::nbd {

// Any thread.
class Unflushed {
 public:
  struct Entry {
    Range range;
    bool zero = false;  // `data` is empty: zeros
    bool may_unmap = false;
    Buffer data;
  };

  // If `era` is still the current one, keeps the entry; else false, and the write has to be done
  // again: the server to which it went is gone, and what was kept has been sent to the new one.
  bool Keep(uint64_t era, Entry entry);

  // Bytes kept, and a mark that stands for all entries so far.
  uint64_t bytes() const;
  uint64_t mark() const;
  // What is before the mark has been flushed.
  void Drop(uint64_t mark);

  // Calls `send` for each entry in order, and then makes `era` the current one. Nothing is kept
  // meanwhile.
  Result<> Replay(uint64_t era, const std::function<Result<>(const Entry&)>& send);

 private:
  mutable Mutex mutex_;  // guards what follows; held while they are sent again
  std::deque<Entry> entries_;
  uint64_t first_ = 0;  // number of the first entry
  uint64_t bytes_ = 0;
  uint64_t era_ = 0;
};

}  // namespace platter::nbd
