// UnitCache: the last few unpacked units of a disk, so that small reads side by side do not unpack
// the same unit again and again.
//
// When is what was kept still right? A unit is known by its host bytes. Units are never overwritten
// in place, so host bytes mean something else only after their space was freed and used again, and
// that is what pins are about (io/pin.h). Say a unit was kept under a Pin of epoch E, whose Map
// named its host bytes. They are unlinked at an epoch r >= E and used again at epoch r + 2 or
// later. Somebody whose Map names the new unit there holds a Pin of epoch p, and while he does the
// epoch is at most p + 1. So p >= E + 1: a Pin of epoch E or before never sees another unit in
// those bytes than the one that was kept. Where nothing is freed the epoch stays, and all that was
// kept with it.
//
// A layer's own, because a store's address is its name here: it must not outlive the stores.
#pragma once

#include <memory>
#include <vector>

#include "base/sync.h"
#include "io/buffer.h"
#include "io/layer.h"

namespace platter {

class UnitCache {
 public:
  // What it holds at most.
  static constexpr size_t kMostUnits = 16;
  static constexpr size_t kMostBytes = 8 * kMiB;

  // The first bytes of a unit, or all; null: nothing is known of it.
  using Unit = std::shared_ptr<const Buffer>;

  // What is kept of the unit that `extent`, mapped under `pin`, is in. Any thread.
  Unit Find(const Extent& extent, const Pin& pin);
  // Keeps `unit`, unpacked under `pin`, in place of what is kept of it, and forgets the unit that
  // nobody has asked for longest. Any thread.
  void Put(const Extent& extent, const Pin& pin, Unit unit);

 private:
  struct Entry {
    const Store* store;
    Range host;
    uint64_t epoch;
    Unit unit;

    bool Holds(const Extent& extent) const { return store == extent.store && host == extent.host; }
  };

  Mutex mutex_;                 // guards what follows; a leaf
  std::vector<Entry> entries_;  // of each unit one; the one last asked for last
  size_t bytes_ = 0;            // of their units
};

}  // namespace platter
