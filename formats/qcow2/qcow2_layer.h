// Qcow2Layer: a qcow2 image as a Layer.
//
// What is on disk
// ---------------
// The header's cluster (header, extensions, the parent's name), written in place and rarely. The L1
// table, contiguous; it names L2 tables, one cluster each, whose entries name data clusters or
// packed units. The refcount table, contiguous; it names refcount blocks, one cluster each. Each
// reference to a host cluster counts one; a packed unit counts one in each cluster that it touches.
// Snapshots have L1 tables of their own and share L2 tables and data with us; what is shared has a
// refcount above one and no "copied" bit in the entry that names it, and is never overwritten: not
// data, not L2 tables. With an external data file, guest bytes are in that file at their own
// offsets, not counted, and here is only metadata.
//
// What is in memory
// -----------------
// L1 and refcount table whole (EntryTable, at most 32 and 8 MiB); L2 tables and refcount blocks in
// caches of 16 and 8 MiB, in slices of at most 64 KiB, so that one lookup in an image of 2 MiB
// clusters does not read 2 MiB. Changed slices stay until they are flushed; a bound on them makes
// the next Reserve or Discard flush first.
//
// Who locks what, in this order
// -----------------------------
//   ranges_        guest clusters of one reservation or discard. Whoever holds a cluster's range is
//                  the only one who changes its L2 entry, so entries that were read once under it
//                  stay as they are, with no other lock held.
//   create_mutex_  making an L2 table that is ours alone. Held while the old one is read.
//   flush_mutex_   one Flush at a time; the header. Never taken with create_mutex_ held.
//   map_mutex_     L1 entries, the bytes of L2 slices, generation_. Never held across I/O.
//   the allocator's own lock (qcow2_alloc.h). Never together with map_mutex_.
// and below them the leaves: table caches, MetadataMap.
//
// A lookup takes map_mutex_ only. On a slice that is not in memory it lets go, reads it, and begins
// again: L1 may name another table by then.
//
// Writing
// -------
// Map calls plain clusters writable that are ours alone (copied in L1 and L2). Everything else
// comes through Reserve: it makes the L2 table ours alone, allocates clusters (refcount 1, named by
// nothing), and tells the engine where the data and what must be copied up go. Publish changes the
// entries in memory, which cannot fail: the reservation holds the L2 slice. The clusters that
// the old entries named are *retired*: their refcounts go down when no table on disk names them
// any more and no Pin can see them (Allocator::Settle).
//
// A writer that stalls between Map and its write in place, while the bytes are discarded and
// reserved anew, may write late. Into a retired cluster: nobody reads it. Into the same place,
// which is used again at once where place and guest address belong together (subclusters,
// preallocated zero clusters, data files): then it overlapped in time with the later write, and
// either may win.
//
// Until the first Reserve, Discard or Resize nothing is writable, whatever its entry says: that
// call is the place where the image learns that it is being changed (BeginWriting): unknown
// autoclear bits are cleared (BeginChange, all that snapshots need) and enabled bitmaps marked as
// in use (qcow2_bitmaps.h). An image that was opened for writing and never written stays as it was,
// byte by byte.
//
// Flush: the order of writes, and what a crash leaves
// ---------------------------------------------------
// Copies of all that is dirty are taken: L2 slices and L1 under map_mutex_ first, then refcounts,
// so that whatever those L2 copies name is counted in those refcounts. Then
//
//   1. the data file's Sync, if there is one
//   2. refcount blocks            a cluster that nobody names may be counted: a leak, allowed
//      Sync                       (only if the refcount table changed)
//   3. refcount table             a new block is whole before it is named
//      Sync, header               (only if the table moved) a new table is whole before it is named
//   4. Sync                       guest data and everything counted is there ...
//   5. L2 slices                  ... before it is named
//   6. Sync, L1                   (only if L1 changed) new L2 tables are whole before they are
//   named
//   7. Sync                       now what was unlinked is unlinked, and Settle may free it
//
// So at each moment what is named on disk is there and counted at least as often as it is named. A
// reference is dropped from the counts in a later flush than the one that dropped the name.
// Refcounts that Settle lowers are written by the next flush, or at the end: until then, leaks.
// Entries of 8 and 16 bytes never cross a sector, and sectors are taken to be written whole.
//
// After an error everything is dirty again and the next Flush tries it all; what was published
// stays published in memory.
//
// Lazy refcounts are ignored when writing: the counts are always right, so the dirty bit is not
// set but while snapshots are changed (qcow2_snapshots.h). An image that has it is repaired when it
// is opened for writing. The corrupt bit refuses writing.
//
// Source: QEMU docs/interop/qcow2.rst.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/sync.h"
#include "formats/format.h"
#include "formats/qcow2/qcow2_alloc.h"
#include "formats/qcow2/qcow2_entries.h"
#include "formats/qcow2/qcow2_metadata.h"
#include "formats/qcow2/qcow2_parse.h"
#include "io/codec/cipher.h"
#include "io/layer.h"
#include "io/range_lock.h"
#include "io/table_cache.h"

namespace platter {
class ExtentList;
}

namespace platter::qcow2 {

// See Format::open. Refuses what we do not know by name. Snapshots and bitmaps that are wrong are
// left out and told in info().problems; where options.writable, they are an error. With
// options.writable an image with the corrupt bit, or whose metadata overlaps, is kCorrupt; one with
// the dirty bit is repaired first.
Result<std::unique_ptr<Layer>> OpenQcow2(std::unique_ptr<Store> store, const OpenOptions& options);

class Qcow2Bitmaps;
class Qcow2Reservation;
class Qcow2Snapshots;

class Qcow2Layer final : public Layer, public Resizer {
 public:
  // What open found out; see qcow2_open.cc.
  struct Parts {
    std::unique_ptr<Store> file;
    std::unique_ptr<Store> data_file;  // null: guest data is in `file`
    std::unique_ptr<Cipher> cipher;
    Header header;
    std::vector<Snapshot> snapshots;
    std::vector<Bitmap> bitmaps;
    Info info;
    EntryTable l1;  // of the disk or of the snapshot that is shown
    bool info_only = false;
  };
  explicit Qcow2Layer(Parts parts);
  // Flushes and gives back what can be given back; errors are lost, so Flush before.
  ~Qcow2Layer() override;

  // For a writable layer, once after construction: allocator and overlap checks. Writes nothing.
  Result<> PrepareToWrite();

  const Info& info() const override { return info_; }
  Pin Hold() override { return pins_.Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<std::unique_ptr<Reservation>> ReservePacked(Range units,
                                                     std::span<const uint32_t> sizes) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override;
  Resizer* resizer() override { return info_.writable ? this : nullptr; }
  Snapshotter* snapshotter() override;
  Bitmapper* bitmapper() override;
  Result<> Resize(uint64_t size, Preallocation preallocation) override;
  Result<> GrowOver(Range hidden, uint64_t size, Preallocation preallocation) override;

 private:
  friend class Qcow2Bitmaps;
  friend class Qcow2Reservation;
  friend class Qcow2Snapshots;

  // Where the L2 entry of a guest offset is.
  struct Place {
    uint64_t l1_index;
    uint64_t slice;  // bytes from the start of the L2 table
    uint64_t index;  // of the entry in the slice
  };
  // Why a lookup stopped.
  struct Stop {
    uint64_t missing = 0;   // offset of a slice that is not in memory ...
    uint64_t l1_index = 0;  // ... and who names it
    bool past_end = false;  // the failure is about the end of the file, as far as we know it
    std::optional<Error> failure;
  };
  // New L2 entry of a cluster.
  struct Update {
    uint64_t index;  // in the slice
    L2Entry entry;
  };
  // What a Flush writes, and puts back if it cannot.
  struct Batch {
    uint64_t generation = 0;
    std::vector<TableCache::Piece> l2;
    std::vector<EntryTable::Piece> l1;
    Refcounts::Batch refcounts;
    bool table_moved = false;  // and the header names its new place
  };

  uint64_t cluster_size() const { return format_.cluster_size(); }
  Store& data() const { return data_file_ ? *data_file_ : *file_; }
  // True if each guest cluster's place in the store of data is its own: nothing is allocated.
  bool placed() const { return data_file_ != nullptr; }
  // Unallocated clusters of this image read as zeros.
  bool absent_is_zero() const { return !format_.has_backing; }

  // qcow2_layer.cc
  template <class T>
  Result<T> Named(Result<T> result) const {
    return result.has_value() ? std::move(result) : std::move(result).WithPrefix(name_);
  }
  Result<> CheckInside(Range want) const;
  Result<> CheckWritable(Range want);
  Result<> BeginChange();
  Result<> BeginWriting();
  Result<> WriteHeaderLocked(const Header& header);
  Result<> CheckNotCut();
  Result<> AddMetadata();
  void Close();

  // qcow2_map.cc
  Place Locate(uint64_t guest) const;
  L2Entry LoadEntry(ConstBytes slice, uint64_t index) const;
  // End of the guest bytes that the slice of `guest` maps, at most the end of the disk.
  uint64_t SliceEnd(uint64_t guest) const;
  uint64_t DataEnd() const;
  Result<size_t> MapAll(Range want, std::span<Extent> out);
  size_t MapLocked(Range want, std::span<Extent> out, Stop& stop);
  bool MapSlice(ConstBytes slice, Range part, bool ours, ExtentList& list, Stop& stop) const;
  Extent PackedExtent(Range part, Range host) const;
  Result<bool> Describe(const Cluster& cluster, Range part, bool ours, ExtentList& list) const;
  bool DescribeRuns(const Cluster& cluster, Range part, bool ours, uint64_t data_end,
                    ExtentList& list) const;
  // The L2 slice of `guest` in a table that is ours alone; makes the table if need be. The caller
  // holds the range of `guest`.
  Result<TableCache::Ref> OwnSlice(uint64_t guest);
  Result<> MakeOwnTable(uint64_t guest);
  Result<std::vector<TableCache::Ref>> LoadTable(uint64_t l1_index, uint64_t table);
  void InstallTable(uint64_t l1_index, uint64_t table, std::span<const TableCache::Ref> old,
                    bool shared);
  // Decoded entries of the clusters that `part` touches, all in `slice`; fewer if a later one is
  // wrong, an error if the first is.
  Result<std::vector<Cluster>> ReadClusters(const TableCache::Ref& slice, Range part);
  // Writes entries; what they name now is new for flushes after the returned one.
  uint64_t WriteEntries(TableCache::Ref& slice, std::span<const Update> updates);
  // The host bytes that an entry counts on, in bytes; empty if none.
  Range HostOf(const Cluster& cluster) const;

  // qcow2_write.cc
  Result<> Plan(Qcow2Reservation& reservation, Range want);
  Result<> CheckOld(const Cluster& cluster, bool stays);
  bool KeepsHost(const Cluster& cluster) const;
  void PlanCluster(Qcow2Reservation& reservation, uint64_t guest, Range part, const Cluster& old,
                   std::optional<uint64_t> fresh, bool zeroed);
  Extent PlainExtent(Range guest, uint64_t host) const;
  // qcow2_packed.cc
  Result<> PlanPacked(Qcow2Reservation& reservation, Range units, std::span<const uint32_t> sizes);

  // qcow2_discard.cc
  Result<Range> DiscardSome(Range want, Kind leave);
  Range DiscardUnits(Range want) const;
  Result<Range> DiscardInRaw(Range part, Kind leave);
  Range EmptyTables(Range part);
  Result<Range> DiscardInSlice(Range part, Kind leave);
  void TrimCompressed(Range& part, std::vector<Cluster>& clusters) const;
  bool SaysAlready(const Cluster& old, L2Entry entry) const;
  L2Entry DiscardedEntry(const Cluster& old, uint32_t mask, Kind leave) const;

  // qcow2_flush.cc
  Result<> FlushIfCrowded();
  Result<> FlushLocked();
  Batch TakeBatch();
  Result<> WriteBatch(Batch& batch);
  Result<> WriteRefcounts(Batch& batch);

  // qcow2_resize.cc
  Result<> ResizeTo(uint64_t size, Preallocation preallocation, Range hidden);
  Result<> Grow(uint64_t size, Preallocation preallocation, Range hidden);
  Result<> Shrink(uint64_t size);
  Result<> MoveL1(uint64_t entries);
  Result<> WriteSize(uint64_t size);
  Result<> DropFrom(uint64_t guest);
  Result<> DropTable(uint64_t l1_index);
  Result<> DropInTable(uint64_t guest, uint64_t end);
  Result<> ZeroTail();
  Result<> HideParent(Range guest);
  Result<> HideSubclusters();
  Result<> CopyTail(uint64_t from, uint64_t to, uint64_t keep);
  Result<> Preallocate(Range guest, Preallocation preallocation);
  Result<Clusters> PreallocateHost(uint64_t guest, uint64_t count, Preallocation preallocation);

  const std::unique_ptr<Store> file_, data_file_;
  const std::unique_ptr<Cipher> cipher_;
  // As opened: geometry and features, which never change. Not its sizes and offsets.
  const Header format_;
  std::vector<Snapshot> snapshots_;  // changed by Qcow2Snapshots only, as info_.snapshots
  const std::string name_;           // "qcow2 'a.img'"
  const bool info_only_;
  const uint64_t slice_bytes_, slice_entries_;
  Info info_;  // its size changes by Resize only, which excludes everything else

  PinSet pins_;
  RangeLock ranges_;
  Mutex create_mutex_;
  Mutex flush_mutex_;                  // guards header_, durable_
  Header header_;                      // as it is on disk
  uint64_t durable_ = 0;               // number of the last flush that succeeded
  std::atomic<bool> changing_{false};  // BeginChange is done
  std::atomic<bool> writing_{false};   // BeginWriting is done
  std::atomic<uint64_t> data_end_{0};  // bytes: end of the store of guest data, if nothing grows it
  MetadataMap metadata_;
  std::unique_ptr<Allocator> allocator_;         // of a writable layer
  std::unique_ptr<Qcow2Snapshots> snapshotter_;  // likewise
  const std::unique_ptr<Qcow2Bitmaps> bitmaps_;

  Mutex map_mutex_;  // guards everything below
  EntryTable l1_;
  TableCache l2_;
  uint64_t generation_ = 0;  // number of the last flush that was begun
};

}  // namespace platter::qcow2
