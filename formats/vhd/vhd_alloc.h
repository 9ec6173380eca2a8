// Allocator: where new blocks go. A unit of host space is a sector bitmap and the data behind it.
//
// A unit's way: free -> allocated (known to a Reservation only) -> published (named by the table in
// memory) -> retired (no entry in memory names it, but one on disk may, and a reader may still look
// at it) -> free again, by Settle.
//
// Policy. Gaps between blocks are filled first, lowest first; then the file grows. The file is made
// longer before anybody gets a unit, in steps, so that it always covers what is allocated; what is
// too much is cut off when the footer is written. New units are placed so that their data begins on
// 4 KiB, as Windows does it: that costs 3.5 KiB a block and saves a partial page at either end.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "base/sync.h"
#include "formats/vhd/vhd_disk.h"
#include "io/pin.h"
#include "io/store.h"

namespace platter::vhd {

// Any thread, any number at once.
class Allocator {
 public:
  Allocator(Store& store, PinSet& pins, uint64_t bitmap_size, uint64_t unit);

  // What is used when writing begins: `starts` of blocks (ascending), and nothing from `end` on.
  // `footer`: it stands at `end`, and nothing behind it. `plain`: between blocks is nothing of use.
  Result<> Open(const std::vector<uint64_t>& starts, uint64_t end, bool footer, bool plain);

  // Host offsets of 1 to `most` units, all of whose data reads as zeros.
  Result<std::vector<uint64_t>> Allocate(uint64_t most);
  // What was allocated and never published.
  void GiveBack(uint64_t start);
  // No entry names the unit any more since flush `generation` of the layer was begun.
  void Retire(uint64_t start, uint64_t generation);
  // Flush number `durable` is on disk. Gives back to the file system what that makes free.
  void Settle(uint64_t durable);
  bool HasRetired() const;

  // `length` bytes at the end, aligned to sectors, for a table. Never given back.
  Result<uint64_t> AllocateEnd(uint64_t length);
  // Writes the footer behind the last unit, and ends the file there, if it is not so already.
  Result<> PutFooter(const DiskFooter& footer);
  // The footer's bytes have changed: the next PutFooter writes it.
  void FooterChanged();
  // Forgets free units at the end. Nobody else uses the image; PutFooter follows.
  void Trim();

  // Bytes of the file that may be read.
  uint64_t file_size() const { return file_size_.load(std::memory_order_acquire); }

 private:
  struct Retired {
    uint64_t start, epoch, generation;
  };

  Result<uint64_t> TakeFreeLocked();
  Result<> GrowLocked(uint64_t end);
  uint64_t PlaceLocked(uint64_t at) const;

  Store& store_;
  PinSet& pins_;
  const uint64_t bitmap_size_, unit_;
  const bool fixed_size_;

  // Guards everything below. Held while the file grows and the footer is written, so that nobody
  // gets the place of a footer that is on its way; no other lock is taken under it.
  mutable Mutex mutex_;
  uint64_t end_ = 0;               // bytes: nothing is used from here on
  bool footer_there_ = false;      // at end_, and the file ends behind it
  bool clean_ = false;             // from end_ on the file reads as zeros
  bool plain_ = false;             // between blocks is nothing of use
  std::map<uint64_t, bool> free_;  // starts of units; whether they read as zeros
  std::deque<Retired> retired_;
  std::atomic<uint64_t> file_size_{0};
};

}  // namespace platter::vhd
