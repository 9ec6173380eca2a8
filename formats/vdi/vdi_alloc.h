// Allocator: which host blocks are free, and when freed ones become so.
//
// Other programs take the number of host blocks in the header for the place of the next one. So
// that number is always past every block in use (end()), also in what a crash leaves; blocks below
// it that nothing uses are holes. Holes are filled first, and what is left of them at the end is
// filled from the end (MoveIntoHoles), so that an image which was closed has none.
//
// A block's way: free -> allocated (known to a Reservation) -> published (named by an entry in
// memory) -> retired (no entry in memory names it, one on disk may, a reader may still look) ->
// free again, by Settle.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "base/sync.h"
#include "formats/vdi/vdi_blocks.h"
#include "io/pin.h"
#include "io/store.h"

namespace platter::vdi {

// Any thread, any number at once, unless said otherwise.
class Allocator {
 public:
  Allocator(Store& file, PinSet& pins) : file_(file), pins_(pins) {}

  // Reads the whole map: once, first. kCorrupt if two entries name one block, or one names what the
  // file does not hold whole: such an image is not to be written to.
  Result<> Open(const Header& header);

  // At least one and at most `most` blocks in a row; the file covers them.
  Result<Run> Allocate(uint32_t most);
  // What was allocated and never published.
  void GiveBack(Run run);
  // No entry names the block since flush `generation` of the layer was begun, so the next one makes
  // that durable. Its space is given back to the file system then.
  void Retire(uint32_t block, uint64_t generation);
  // Flush number `durable` is on disk: frees what that makes free.
  void Settle(uint64_t durable);
  bool HasRetired() const;
  // So much is retired that somebody should flush.
  bool crowded() const;

  // Every block that anything on disk or in memory may name is below.
  uint32_t end() const;
  // Bytes of the file that may be read.
  uint64_t file_size() const { return file_size_.load(std::memory_order_acquire); }

  // Nobody else uses the image, and all is flushed.
  std::vector<Run> Holes() const;  // ascending
  // The holes are filled with what was behind: blocks below `used`, all of them, are in use.
  void Filled(uint32_t used);
  // Holes at the end are none: end() is where they begin.
  void DropLastHoles();
  // One block behind all that are in use, number `least` or more.
  Result<uint32_t> AppendOne(uint32_t least);
  // The file ends behind block end() - 1.
  Result<> Cut();

 private:
  struct Retired {
    uint32_t block;
    uint64_t epoch;       // of pins_ when nothing named it any more
    uint64_t generation;  // of the layer's flushes
  };

  uint64_t EndOf(uint64_t blocks) const { return data_offset_ + blocks * stride_; }
  Result<> CoverLocked(uint64_t blocks);
  void AddFreeLocked(Run run);

  Store& file_;
  PinSet& pins_;
  uint64_t data_offset_ = 0, stride_ = 0;

  mutable Mutex mutex_;  // guards everything below; a leaf, but for the file's own locks
  uint32_t end_ = 0;
  uint64_t untouched_ = 0;             // blocks: from here on the file has never held anything
  std::map<uint32_t, uint32_t> free_;  // below end_: first block, count
  std::deque<Retired> retired_;
  std::atomic<uint64_t> file_size_{0};
};

}  // namespace platter::vdi
