// SpaceMap: which MiB of the file are used.
//
// VHDX has no table of free space: what nothing names is free. So the map is made once, before the
// first change, from the regions and the BAT: one bit for each MiB of the file.
//
// A block's way: free -> allocated (known to a reservation only) -> published (named by the BAT in
// memory) -> retired (no longer named in memory, but maybe on disk, and a reader may still look at
// it) -> free. Settle does the last step, for what is unlinked durably and out of every Pin's
// sight.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <vector>

#include "base/range.h"
#include "base/result.h"
#include "base/sync.h"
#include "io/pin.h"
#include "io/store.h"

namespace platter::vhdx {

// Any thread, any number at once.
class SpaceMap {
 public:
  SpaceMap(Store& file, PinSet& pins) : file_(file), pins_(pins) {}

  // First: how long the file is. kUnsupported for a file of more than 2^47 bytes.
  Result<> Open();
  // `place` is used, rounded outward to MiB. False if a part of it was used before.
  bool Use(Range place);

  struct Run {
    Range host;           // whole units
    bool zeroed = false;  // reads as zeros: never used since the file was made that long
  };
  // A run of at least one and at most `most` units of `unit` bytes (whole MiB).
  Result<Run> Allocate(uint64_t unit, uint64_t most);
  // What was allocated and never published.
  void GiveBack(Range host);

  // Nothing in memory names `host` any more, since flush `generation` of the layer was begun.
  // `punch`: its space is given back to the file system, too.
  void Retire(Range host, uint64_t generation, bool punch);
  // Flush number `durable` is on disk: frees what that makes free.
  void Settle(uint64_t durable);
  bool HasRetired() const;

  // Bytes of the file: it is at least that long.
  uint64_t file_size() const { return file_size_.load(std::memory_order_acquire); }
  // Cuts off what lies behind the last used MiB. Nobody else uses the image.
  Result<> Trim();

 private:
  struct Retired {
    Range host;
    uint64_t epoch, generation;
    bool punch;
  };

  bool IsUsedLocked(uint64_t unit) const;
  void SetLocked(Range host, bool used);
  uint64_t EndLocked() const;  // MiB: behind the last used one
  Range FindLocked(uint64_t length, uint64_t most);
  Result<> GrowLocked(uint64_t size);

  Store& file_;
  PinSet& pins_;
  bool fixed_size_ = false;

  mutable Mutex mutex_;     // guards everything below; held while the file grows and is punched
  std::vector<bool> used_;  // by MiB; those behind its end are free
  uint64_t end_ = 0;        // MiB: from here on all are free
  uint64_t untouched_ = 0;  // MiB: from here on the file never held anything
  uint64_t hint_ = 0;       // MiB: before it there is no free run of `hint_length_`
  uint64_t hint_length_ = 0;
  std::deque<Retired> retired_;
  std::atomic<uint64_t> file_size_{0};
};

}  // namespace platter::vhdx
