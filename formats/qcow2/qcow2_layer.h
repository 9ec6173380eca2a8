// Qcow2Layer: a qcow2 image as a Layer.
//
// On disk: the header names an L1 table (in memory as a whole, at most 32 MiB); its entries name L2
// tables of one cluster each, whose entries map guest clusters to host clusters. L2 tables are
// cached in slices of at most 64 KiB. Refcounts say who uses which host cluster (qcow2_refcount.h).
//
// Locks, in the order in which they are taken:
//   1 flush_mutex_      one Flush at a time; held during its writes and syncs
//   1 reservations_     RangeLock on guest clusters: Reserve (until it is published or dropped) and
//                       Discard; never together with flush_mutex_
//   2 tables_mutex_     creating or copying an L2 table; held while refcount blocks load
//   3 mutex_            L1, L2 entries, quarantine; never held while anything is read or written
//   3 Refcounts::mutex_ never together with mutex_
//
// Writing: Reserve finds or makes space under the range lock; the engine moves the data with no
// lock but that one; Publish changes L2 entries in memory. A cluster or table that an entry no
// longer names goes to the quarantine: its count is lowered once the L2 table that dropped it is
// durable and every reader that might have mapped it (a Pin) is gone.
//
// Flush: takes copies of dirty L2 slices and L1 sectors, then (after them, so that every count that
// they rely on is included) of dirty refcounts, and writes
//   data store sync -> refcount blocks [-> sync -> refcount table] -> sync -> L2 [-> sync -> L1]
//   -> sync -> lowered counts of what left the quarantine (not synced: a lost one is a leak).
// A crash at any point leaves old or new entries, whose clusters are all counted: leaks, never
// corruption. Refcounts are always kept right; images with lazy refcounts are treated alike.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/sync.h"
#include "formats/format.h"
#include "formats/qcow2/qcow2_parse.h"
#include "formats/qcow2/qcow2_refcount.h"
#include "io/layer.h"
#include "io/pin.h"
#include "io/range_lock.h"
#include "io/table_cache.h"

namespace platter::qcow2 {

class Qcow2Reservation;

class Qcow2Layer final : public Layer, public Resizer {
 public:
  static Result<std::unique_ptr<Qcow2Layer>> Open(std::unique_ptr<Store> store,
                                                  const OpenOptions& options);
  ~Qcow2Layer() override;

  const Info& info() const override { return info_; }
  Pin Hold() override { return pins_.Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<std::unique_ptr<Reservation>> ReservePacked(Range units,
                                                     std::span<const uint32_t> sizes) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override;
  Resizer* resizer() override { return this; }
  Result<> Resize(uint64_t size, Preallocation preallocation) override;

 private:
  friend class Qcow2Reservation;
  using Lock = std::unique_lock<Mutex>;

  Qcow2Layer(std::unique_ptr<Store> store, Header header);
  Result<> OpenTables(const OpenOptions& options, const std::vector<Snapshot>& snapshots);
  Result<> OpenForWriting(const std::vector<Snapshot>& snapshots);
  Result<> ReadL1(uint64_t offset, uint32_t entries);

  // --- qcow2_map.cc
  Store& data() const { return data_store_ ? *data_store_ : *store_; }
  uint64_t slice_bytes() const { return std::min<uint64_t>(header_.cluster_size(), 64 * kKiB); }
  // Guest bytes that one slice maps.
  uint64_t slice_span() const {
    return slice_bytes() / header_.l2_entry_size() * header_.cluster_size();
  }
  // The slice of the L2 table that maps `guest`, empty where there is no table. `lock` (of mutex_)
  // is held on entry and on return and may be let go in between.
  Result<TableCache::Ref> FindSlice(Lock& lock, uint64_t guest);
  Result<uint64_t> SliceOffset(uint64_t guest) const;  // 0: no table
  L2Entry LoadEntry(const TableCache::Ref& slice, uint64_t guest) const;
  void StoreEntry(TableCache::Ref& slice, uint64_t guest, L2Entry entry);
  Result<> CheckRange(Range want) const;
  class Mapper;

  // --- qcow2_write.cc
  struct Plan;
  Plan PlanCluster(const Cluster& old, L2Entry entry, uint64_t guest, Range part) const;
  Result<std::vector<Plan>> PlanRange(const TableCache::Ref& slice, Range range) const;
  L2Entry NewEntry(const Plan& plan, uint64_t host) const;
  Range DroppedBy(const Plan& plan) const;  // host bytes that the old entry names and the new not
  Result<> AddToReservation(Qcow2Reservation& reservation, Plan plan, uint64_t host,
                            bool host_is_zero);
  Result<> StartWriting();
  Result<> CheckWritable() const;
  // The slice that maps `guest`, in a table of our own that may be edited.
  Result<TableCache::Ref> WritableSlice(uint64_t guest);
  Result<> MakeTable(uint64_t guest);  // under tables_mutex_
  // Host space [offset, end) that an entry dropped: see quarantine_.
  void DropLocked(Range host, bool give_back);
  Result<> EnsureFileCovers(uint64_t end);
  Result<> FlushIfLarge();

  // --- qcow2_flush.cc
  struct Taken;  // what one flush writes
  Result<> WriteTaken(const Taken& taken);
  Result<> WritePieces(const std::vector<TableCache::Piece>& pieces);
  void SettleQuarantine(uint64_t generation);
  Result<> WriteHeader(const Header& header);

  // --- qcow2_discard.cc
  Result<> DiscardSlice(Range part, Kind leave);
  void DiscardCluster(TableCache::Ref& slice, const Cluster& old, Range part, uint64_t guest,
                      Kind leave);

  // --- qcow2_resize.cc
  Result<> GrowL1(uint64_t entries);
  Result<> Shrink(uint64_t size);
  Result<> Preallocate(Range added, Preallocation preallocation);

  const std::unique_ptr<Store> store_;
  std::unique_ptr<Store> data_store_;  // external data file; null: data is in store_
  std::unique_ptr<Cipher> cipher_;
  Header header_;  // changes under exclusive use or header_mutex_ only
  Info info_;
  bool writable_ = false;
  PinSet pins_;
  RangeLock reservations_;
  Mutex flush_mutex_, tables_mutex_;

  mutable Mutex mutex_;       // guards what follows, and the bytes of cached L2 slices
  std::vector<uint64_t> l1_;  // as on disk
  uint64_t l1_offset_ = 0;
  std::vector<bool> l1_dirty_;  // by 512-byte sector
  mutable TableCache l2_;
  struct Dropped {
    Range host;
    bool give_back;              // punch a hole in the file as well
    uint64_t epoch, generation;  // when: of pins_, of flushes
  };
  std::deque<Dropped> quarantine_;
  uint64_t generation_ = 1;  // of the flush that will make the present state durable

  Mutex size_mutex_;                  // growing the file
  Mutex header_mutex_;                // guards writing the header, and started_
  std::atomic<bool> started_{false};  // the header and the bitmaps know of a writer
  std::vector<Bitmap> bitmaps_;
  std::unique_ptr<Refcounts> refcounts_;  // null: read-only
  std::atomic<uint64_t> file_size_{0};    // of data(): at least this much is there
  std::atomic<bool> wrote_{false};        // something was written since the last Sync
};

}  // namespace platter::qcow2

namespace platter {
Result<std::unique_ptr<Layer>> OpenQcow2(std::unique_ptr<Store> store, const OpenOptions& options);
}
