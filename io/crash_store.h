// Power cuts: a recorder of everything that is done to a few stores, which can say what a disk may
// hold when the power fails at any moment of it.
//
//   CrashRecorder recorder;
//   auto layer = Format(recorder.NewStore("disk"));  // durable from the start: what it begins with
//   ... Write; Flush; uint64_t acknowledged = recorder.boundary(); Write ...
//   for (uint64_t b = 0; b <= recorder.boundary(); ++b)
//     for (uint64_t seed = 0; seed < 8; ++seed) {
//       std::unique_ptr<MemoryStore> disk = recorder.Crash(b, seed);
//       ... open it; it must not be corrupt; if (b >= acknowledged) the first write is there ...
//     }
//
// What a disk may hold at boundary b (after the first b events): everything before the store's
// last Sync among them, and for each 512-byte sector that was touched after it, independently, its
// content after any one of those touches, or before them all. That is any subset of the unsynced
// writes, in any order, torn at sectors; within a sector, bytes of an earlier write are not lost to
// a later one, since drives and page caches write whole sectors. The length of a file is one more
// such thing, independent of the sectors; bytes that a durable cut removed do not come back.
//
// Stores of one recorder (an image and its data file) share one count of events, and each has its
// own Sync: Crash them all with the same boundary.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/sync.h"
#include "io/memory_store.h"
#include "io/store.h"

namespace platter {

class CrashRecorder {
 public:
  CrashRecorder();
  ~CrashRecorder();
  CrashRecorder(const CrashRecorder&) = delete;
  CrashRecorder& operator=(const CrashRecorder&) = delete;

  // A store that records into this, which must outlive it. Numbered 0, 1, ... in order of calls.
  std::unique_ptr<Store> NewStore(const std::string& name = "disk", uint64_t size = 0);
  // One that starts with durable contents (and the name) of `initial`.
  std::unique_ptr<Store> NewStore(const MemoryStore& initial);

  // How many events (Write, Zero, Resize, Allocate, Sync) there have been on all stores.
  uint64_t boundary() const;

  // What store `number` may hold when the power fails after the first `boundary` events. Seed 0:
  // only what is durable for certain; seed 1: everything; others: something in between, always the
  // same for the same arguments. Any thread.
  std::unique_ptr<MemoryStore> Crash(uint64_t boundary, uint64_t seed, size_t number = 0) const;

 private:
  friend class CrashStore;
  struct Event;
  struct File;

  std::unique_ptr<Store> Add(std::unique_ptr<MemoryStore> contents);

  mutable Mutex mutex_;  // guards everything below, and is held while a call takes effect; a leaf
  uint64_t boundary_ = 0;
  std::vector<std::unique_ptr<File>> files_;
};

}  // namespace platter
