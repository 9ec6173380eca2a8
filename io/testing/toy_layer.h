// ToyLayer: the contract of io/layer.h in its smallest complete form, over any Store. Engine, Disk
// and schedule tests run on it, and whoever writes a format can read here what each call owes.
//
// On the store: two slots that hold the whole table of clusters (generation and checksum in front),
// then host clusters. Flush writes data, barrier, the older slot, barrier: a torn slot fails its
// checksum and the other one is still there.
//
// Locks, in order: RangeLock (held by reservations and discards; covers whole clusters), then
// mutex_ (the table and the allocator; never held across I/O). flush_mutex_ is taken before mutex_.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/sync.h"
#include "io/codec/cipher.h"
#include "io/layer.h"
#include "io/range_lock.h"
#include "io/store.h"
#include "io/unit_cache.h"

namespace platter {

class ToyLayer : public Layer {
 public:
  // Ways to break the contract, so that tests can show that they notice.
  enum class Break : uint8_t {
    kNothing,
    kNoWait,        // overlapping reservations do not wait for one another
    kNoQuarantine,  // freed clusters are reused at once
    kPublishEarly,  // the table points at a cluster before its data is there
    kNoBarrier,     // Flush writes the table without waiting for the data
  };
  struct Options {
    uint64_t size = 0;                     // bytes
    uint32_t cluster = 4096;               // bytes, a power of two >= 512
    uint32_t reserve_limit = 16;           // clusters that one Reserve covers at most
    uint32_t host_limit = 0;               // host clusters that there may be; 0: any number
    const Cipher* cipher = nullptr;        // all data is encrypted
    Codec::Id compression = Codec::kNone;  // else ReservePacked is offered
    bool has_parent = false;               // what is not there is kParent instead of kHole
    Break broken = Break::kNothing;
  };

  // Writes an empty table. `store` outlives the layer; both calls get the same options.
  static Result<> Create(Store& store, const Options& options);
  static Result<std::unique_ptr<ToyLayer>> Open(Store& store, const Options& options);
  // False where two guest clusters name the same host bytes, or bytes past the end.
  static Result<bool> Check(Store& store, const Options& options);

  const Info& info() const override { return info_; }
  Pin Hold() override { return pins_.Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<std::unique_ptr<Reservation>> ReservePacked(Range units,
                                                     std::span<const uint32_t> sizes) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override;
  UnitCache* unit_cache() override { return &unit_cache_; }

  // Host clusters that hold something, for tests of leaks.
  uint64_t used_clusters();

 private:
  struct Claim;

  struct Entry {  // of a guest cluster
    Kind kind = Kind::kHole;
    bool packed = false;
    uint32_t length = 0;  // kData: host bytes
    uint64_t host = 0;
  };
  struct Freed {  // a host cluster in quarantine
    size_t index;
    uint64_t epoch;       // of pins_ when it was unlinked
    uint64_t generation;  // of the first table without it
  };

  ToyLayer(Store& store, const Options& options);
  Result<> CheckRange(Range want) const;
  Result<> Load();
  uint64_t slot_size() const;
  Extent Describe(size_t index, Range part) const;
  Result<uint64_t> AllocateLocked(uint64_t bytes);
  void UseLocked(const Entry& entry);
  void DropLocked(const Entry& entry, bool quarantine);
  Result<> PlaceLocked(Claim& claim, Range want, Range clusters);
  void PlaceInPlaceLocked(Claim& claim, Range want);

  static constexpr uint32_t kQuarantined = UINT32_MAX;

  Store& store_;
  const Options options_;
  Info info_;
  PinSet pins_;
  UnitCache unit_cache_;
  RangeLock ranges_;
  Mutex flush_mutex_;  // one Flush at a time
  Mutex mutex_;        // guards everything below
  std::vector<Entry> table_;
  std::vector<uint32_t> uses_;  // of each host cluster: 0 free, kQuarantined, or how many entries
  std::vector<Freed> freed_;
  uint64_t generation_ = 0;  // of the durable table
  uint64_t snapshot_ = 0;    // of the table that was last copied out to be written
};

}  // namespace platter
