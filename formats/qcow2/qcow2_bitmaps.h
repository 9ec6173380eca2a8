// Dirty bitmaps: kept, changed, and made to follow the guest's writes.
//
// What is on disk
// ---------------
// The header names the bitmap directory. Its entries name tables, one for each bitmap, whose
// entries name clusters of bits, or say that all of such a cluster's bits are zero, or one. "In
// use" in the directory means: the bits on disk are older than the disk. A program that finds it
// set, and has not set it itself, has a bitmap that is not to be trusted ("inconsistent").
//
// Tracking
// --------
// Writes in place bypass the layer, so a place is writable for Map only once its granules are dirty
// in every enabled bitmap. The first write to a clean granule comes through Reserve, which gives
// the place itself, and marks the granules: at Reserve already, because bytes in place change
// before Publish, and stay changed if that never comes. A granule that is marked and then not
// written is copied for nothing, which is allowed.
//
// Before the first write (BeginWriting) the enabled bitmaps are marked as in use, and that is
// durable. From then on their bits are changed in memory only (DirtyPages), cluster by cluster as
// they are touched. StopTracking, at the end and before bitmaps, snapshots or the size are changed,
// writes them back:
//
//   1. clusters for pages that had none are allocated, bits are written; Flush: they are counted,
//      and there
//   2. the table's entries are written; Sync
//   3. "in use" is taken away; Sync
//
// A crash before 3 leaves bitmaps that are not to be trusted, as QEMU does, and leaks.
//
// Changes
// -------
// Adding, removing, clearing and merging write what is new to places of its own, then a whole new
// directory, Flush, and the header's first sector names it; then what is old is freed. Enabling
// changes one field in place.
//
// Source: QEMU docs/interop/qcow2.rst, "Bitmaps extension" and "Bitmaps".
#pragma once

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "formats/qcow2/qcow2_dirty.h"
#include "formats/qcow2/qcow2_layer.h"
#include "io/bitmapper.h"

namespace platter::qcow2 {

class Qcow2Bitmaps final : public Bitmapper {
 public:
  // `layer` is as it was opened, and outlives this.
  Qcow2Bitmaps(Qcow2Layer& layer, std::vector<Bitmap> bitmaps);

  const std::vector<Bitmap>& list() const { return bitmaps_; }

  Result<> AddBitmap(const NewBitmap& bitmap) override;
  Result<> RemoveBitmap(const std::string& name) override;
  Result<> ClearBitmap(const std::string& name) override;
  Result<> EnableBitmap(const std::string& name, bool enabled) override;
  Result<> MergeBitmap(const std::string& name, Bitmapper& source,
                       const std::string& from) override;
  Result<> VisitDirty(const std::string& name, Range within, const Visit& visit) override;

  // qcow2_bitmap_tracking.cc
  // Under the layer's flush_mutex_, before anything is written for the guest.
  Result<> StartTracking();
  // Exclusive. What is tracked is on disk afterwards, and to be trusted.
  Result<> StopTracking();
  bool tracking() const { return tracking_.load(std::memory_order_acquire); }
  // Whether all of `guest` is dirty in all bitmaps that are tracked.
  bool Covers(Range guest) const;
  // Makes it so.
  Result<> Mark(Range guest);

  // qcow2_bitmap_resize.cc, where it is told how bitmaps follow a disk that changes its size.
  Result<> CheckCanGrow(uint64_t size) const;
  // Marks all that are not, and returns which.
  Result<std::vector<size_t>> MarkAllInUse();
  // `marked` by MarkAllInUse before the disk changed from `old_size`.
  Result<> Resize(const std::vector<size_t>& marked, uint64_t old_size);

 private:
  using Table = std::vector<uint64_t>;  // its entries
  // A bitmap whose bits are newer in memory than on disk.
  struct Tracked {
    size_t index;  // in bitmaps_
    Table table;
    DirtyPages pages;
  };
  // What becomes of a bitmap's table when the disk changes its size.
  struct Change {
    uint64_t table_offset = 0;
    Table entries;
    std::vector<Range> gone;  // host bytes that nothing names any more
  };
  // What the bits of one cluster are.
  struct PageBits {
    std::vector<std::byte> bits;
    bool none = false;  // all are zero
  };

  uint64_t page_bytes() const { return layer_.cluster_size(); }
  // Table entries that the bits for `size` bytes of disk need.
  uint64_t EntriesFor(const Bitmap& bitmap, uint64_t size) const;
  Result<size_t> Find(const std::string& name) const;
  Result<size_t> FindTrusted(const std::string& name) const;
  // What every change begins with: nothing is tracked and nothing dirty afterwards.
  Result<> Begin();
  Result<Bitmap> Describe(const NewBitmap& bitmap) const;
  Result<> Add(const NewBitmap& bitmap);
  Result<> Remove(const std::string& name);
  Result<> Clear(const std::string& name);
  Result<> Enable(const std::string& name, bool enabled);
  Result<> Merge(const std::string& name, Bitmapper& source, const std::string& from);
  // Bits of `page` that `source` has, too: into a new cluster, which `table` then names.
  Result<> MergePage(Table& table, uint64_t page, ConstBytes bits, std::vector<Range>& fresh,
                     std::vector<Range>& gone);
  Result<> TellDirty(const std::string& name, Range within, const Visit& visit);
  // Bits of page `page` as they are now, in memory or on disk.
  Result<PageBits> BitsNow(const Bitmap& bitmap, size_t index, uint64_t page);

  // A table of its own for `bitmap`, which then names it; written, not synced.
  Result<> PlaceTable(Bitmap& bitmap, const Table& table, std::vector<Range>& fresh);
  // The moment at which a change happens: `bitmaps` are what the image has. `fresh` is what they
  // name that is not counted on disk yet; given back on failure. `gone` is freed.
  Result<> SwitchTo(std::vector<Bitmap> bitmaps, std::vector<Range> fresh,
                    const std::vector<Range>& gone);
  Result<> WriteDirectory(std::vector<Bitmap>& bitmaps, std::vector<Range>& fresh, Header& header);
  void GiveBack(const std::vector<Range>& fresh);
  Result<uint64_t> NewRun(uint64_t clusters, std::vector<Range>& fresh);
  // Everything that `bitmap` and its `table` occupy.
  std::vector<Range> SpaceOf(const Bitmap& bitmap, const Table& table) const;
  Result<> Free(const std::vector<Range>& gone);

  Result<> WriteFlags(size_t index, uint32_t flags);
  // On disk; whether we trust it is another matter.
  Result<> WriteInUse(size_t index, bool in_use);
  // Both, under exclusion.
  Result<> SetInUse(size_t index, bool in_use);
  Result<> WriteField(const Bitmap& bitmap, uint64_t field, ConstBytes value);
  // kCorrupt where an entry names what is not the bitmap's alone. Of a writable layer.
  Result<Table> LoadTable(const Bitmap& bitmap);
  // As far as a reader can tell.
  Result<> CheckEntry(const Bitmap& bitmap, uint64_t index, uint64_t entry) const;
  Result<PageBits> ReadPage(const Bitmap& bitmap, uint64_t page, uint64_t entry) const;

  Result<> LoadPage(Tracked& tracked, uint64_t page);
  Result<> StoreBits(Tracked& tracked, std::vector<Range>& gone);
  Result<> WriteTable(const Bitmap& bitmap, const Table& table);

  Result<Change> PlanChange(const Bitmap& bitmap, uint64_t old_size);
  Result<> EndCluster(uint64_t& entry, uint64_t first, bool dirty);
  Result<> PlaceChanged(size_t index, const Change& change);

  Qcow2Layer& layer_;
  // As on disk, but for bits; changed under exclusion. Their info.in_use says that *we* do not
  // trust them: it stays false of one that we track, while its flags say "in use" to others.
  std::vector<Bitmap> bitmaps_;
  uint64_t directory_ = 0;  // bytes: offset of the directory
  std::atomic<bool> tracking_{false};

  // Guards pages, held_, and info.in_use where tracking begins. May be taken under map_mutex_; a
  // leaf, never held across I/O.
  mutable Mutex mutex_;
  std::vector<Tracked> tracked_;  // itself changed under exclusion, or before tracking_ is set
  uint64_t held_ = 0;             // bytes of pages in memory
};

}  // namespace platter::qcow2
