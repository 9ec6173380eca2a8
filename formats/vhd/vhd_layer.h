// VhdLayer: a dynamic or differencing VHD as a Layer.
//
// What is on disk
// ---------------
//   footer (copy) | header | table | blocks ... | footer
//
// and, between table and blocks or anywhere else, the parent locators and Xen's batmap. The table
// (BAT) has 32 bits for each block of guest bytes: the sector where its unit begins, or "unused".
// A unit is a sector bitmap and the block's data behind it. A sector whose bit is clear is not
// here: it reads as zeros in a dynamic disk, as the parent's in a differencing one. Programs differ
// for dynamic disks; ours reads by the specification, and writes so that all agree: a new block of
// a dynamic disk has all bits set and holds zeros where nothing was written.
//
// What is in memory
// -----------------
// Slices of the table and sector bitmaps, in bounded caches. Changed ones stay until they are
// flushed; a bound on them makes the next Reserve or Discard flush first.
//
// Who locks what, in this order
// -----------------------------
//   ranges_       blocks of one reservation or discard. Whoever holds a block's range is the only
//                 one who changes its table entry or its bitmap.
//   flush_mutex_  one Flush at a time; the first write; footer and header.
//   map_mutex_    bytes of table slices and bitmaps, generation_. Never held across I/O.
//   the allocator's own lock (vhd_alloc.h). Never together with map_mutex_.
//
// A lookup takes map_mutex_ only. On a table that is not in memory it lets go, reads it, and begins
// again: the block may be elsewhere by then.
//
// Writing
// -------
// Until the first Reserve, Discard or Resize nothing is writable. That call reads the whole table,
// and refuses an image whose blocks overlap each other or the metadata (BeginWriting): a write to
// one would change the other. It then mends the copy of the footer at the start, which the image
// depends on from now on: new blocks go where the footer at the end was.
//
// Sectors that are here are overwritten in place. Others come through Reserve: in a block that has
// a place, into that place, with their bits set by Publish; else into a new unit, whose bitmap is
// written at once, while nothing names it. Publish changes the table in memory. Partial sectors are
// filled from the old view.
//
// Discard of a whole block makes its entry "unused"; of sectors, clears bits in a differencing disk
// and punches a hole in the file in a dynamic one. Units are *retired* and used again when no table
// on disk names them any more and no Pin can see them. A block that the batmap calls full stays
// full, since we do not write the batmap.
//
// Flush: the order of writes, and what a crash leaves
// ---------------------------------------------------
//   1. Sync            (only if bits were set) sectors are there before their bits say so
//   2. bitmaps
//   3. footer          behind the last unit, where the file ends from now on
//   4. Sync            new units are whole, data and bitmap, before they are named
//   5. table, Sync
//
// At each moment what is named is there. A crash leaves units that nobody names: leaks, which
// check finds. Between the first new unit and the next flush the file has no footer at its end, and
// a crash then leaves it so: the copy at the start is valid all the time, and we and others read
// it. A bit and the sectors that it stands for are in different sectors of the file, entries and
// bits never cross one, and sectors are taken to be written whole.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/sync.h"
#include "formats/format.h"
#include "formats/vhd/vhd_alloc.h"
#include "formats/vhd/vhd_image.h"
#include "io/extent_list.h"
#include "io/layer.h"
#include "io/range_lock.h"
#include "io/table_cache.h"

namespace platter::vhd {

// See Format::open.
Result<std::unique_ptr<Layer>> OpenVhd(std::unique_ptr<Store> store, const OpenOptions& options);

class VhdReservation;

class VhdLayer final : public Layer, private Resizer {
 public:
  VhdLayer(std::unique_ptr<Store> store, Image image, Info info);
  // Flushes and cuts off what the file is too long by; errors are lost, so Flush before.
  ~VhdLayer() override;

  const Info& info() const override { return info_; }
  Pin Hold() override { return pins_.Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override;
  Resizer* resizer() override { return info_.writable ? this : nullptr; }

 private:
  friend class VhdReservation;

  // Why a lookup stopped.
  struct Stop {
    TableCache* cache = nullptr;  // what to load, and ...
    uint64_t offset = 0;          // ... from where
    bool past_end = false;        // the failure is about the end of the file, as far as we know it
    std::optional<Error> failure;
  };

  uint64_t block_size() const { return image_.header.block_size; }
  uint64_t bitmap_size() const { return image_.header.bitmap_size(); }
  bool differencing() const { return image_.differencing(); }
  Kind absent() const { return differencing() ? Kind::kParent : Kind::kHole; }
  uint64_t FileEnd() const;

  // vhd_layer.cc
  template <class T>
  Result<T> Named(Result<T> result) const {
    return result.has_value() ? std::move(result) : std::move(result).WithPrefix(name_);
  }
  Result<> CheckInside(Range want) const;
  Result<> CheckWritable(Range want);
  Result<> BeginWriting();
  Result<> BeginWritingLocked();
  Result<> FlushIfCrowded();
  Result<> FlushLocked();
  Result<> WriteTables(std::span<const TableCache::Piece> bits,
                       std::span<const TableCache::Piece> table);
  void Close();

  // vhd_map.cc
  Result<size_t> MapAll(Range want, std::span<Extent> out);
  size_t MapLocked(Range want, std::span<Extent> out, Stop& stop);
  bool MapUnused(ConstBytes slice, Range want, uint64_t& at, ExtentList& list) const;
  bool MapBlock(Range part, uint64_t unit, ExtentList& list, Stop& stop);
  Result<> CheckUnit(uint64_t unit, uint64_t index, uint64_t end) const;
  // Of block `index`: the slice that has its entry, and where in it.
  uint64_t SliceOf(uint64_t index) const;
  uint64_t InSlice(uint64_t index) const { return index * 4 % slice_bytes_; }
  // Host offset of the unit that the entry at `index` names, or nothing.
  std::optional<uint64_t> UnitAt(ConstBytes slice, uint64_t index) const;
  // Whole sectors of `part`, which lies in one block, as bits of its bitmap.
  Range BitsOf(Range part) const;

  // vhd_write.cc
  Result<> Plan(VhdReservation& reservation, Range want);
  Result<> PlanFresh(VhdReservation& reservation, std::span<const Range> parts);
  Result<> PlanBlock(VhdReservation& reservation, Range part, uint64_t unit);
  bool BatmapSays(uint64_t index) const;

  // vhd_discard.cc
  Result<Range> DiscardSome(Range want, Kind leave);
  // `force`: even those that the batmap calls full.
  Result<Range> DropBlocks(Range blocks, bool force = false);
  Result<Range> DropInBlock(Range part);
  Result<Range> DropSectors(Range part, uint64_t unit);

  // vhd_resize.cc
  Result<> Resize(uint64_t size, Preallocation preallocation) override;
  Result<> Grow(uint64_t size);
  Result<> Shrink(uint64_t size);
  Result<> GrowTable(uint64_t entries);
  Result<> ForgetBeyond(uint64_t first, uint64_t end);
  Result<> ZeroTail(uint64_t from, uint64_t to);
  Result<> WriteSize(uint64_t size);

  const std::unique_ptr<Store> store_;
  const std::string name_;  // "vpc 'a.vhd'"
  // Its size, header.table_offset and header.table_entries change by Resize only, which excludes
  // everything else.
  Image image_;
  Info info_;

  PinSet pins_;
  RangeLock ranges_;
  Mutex flush_mutex_;     // guards durable_ and the writing of everything but data
  uint64_t durable_ = 0;  // number of the last flush that succeeded
  std::atomic<bool> writing_{false};
  std::atomic<uint64_t> end_{0};  // bytes: blocks end here, as long as nothing here grows the file
  Allocator allocator_;

  Mutex map_mutex_;          // guards everything below
  uint64_t generation_ = 0;  // number of the last flush that was begun
  uint64_t slice_bytes_;
  std::unique_ptr<TableCache> table_;
  TableCache bitmaps_;
};

// Bytes of a slice of the table: the largest piece that divides it, so that none reaches past its
// end.
uint32_t SliceBytes(const Header& header);
std::unique_ptr<TableCache> MakeTableCache(Store& store, const Header& header);

// Sets or clears a run of bits of a cached bitmap. Under the layer's map_mutex_.
void EditBits(TableCache::Ref& bitmap, Range run, bool value);

}  // namespace platter::vhd
