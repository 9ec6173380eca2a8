// VhdxLayer: a VHDX image as a Layer.
//
// What is on disk
// ---------------
// The header section: identifier, two headers, two region tables. The log, a ring. The metadata
// region: block size, disk size, parent. The BAT, a table of 64-bit entries: where each block of
// the disk is, if it is there; after each "chunk ratio" of them one entry for a sector bitmap block
// of 1 MiB. In a differencing image a block may be present in part: a bit for each of its sectors
// says whether the sector is here (1) or in the parent (0). In other images a present block is
// present whole. All regions and blocks lie on multiples of 1 MiB.
//
// What is in memory
// -----------------
// BAT and sector bitmaps in one cache of 16 MiB, in slices of 64 KiB; and, once something was
// written, one bit for each MiB of the file (SpaceMap).
//
// Who locks what, in this order
// -----------------------------
//   ranges_        guest blocks of one reservation or discard. Whoever holds a block's range is the
//                  only one who changes its BAT entry and its bits, so an entry that was read under
//                  it stays as it is.
//   create_mutex_  giving a chunk its sector bitmap block.
//   flush_mutex_   one Flush at a time: journal, headers. Never taken with create_mutex_ held.
//   map_mutex_     the bytes of slices, which of them are dirty. Never held across I/O.
//   the space map's own lock. Never together with map_mutex_.
// and below them the leaf: the table cache.
//
// A lookup takes map_mutex_ only. On a slice that is not in memory it lets go, reads it, and begins
// again.
//
// Writing
// -------
// Map calls sectors that are present writable. Everything else comes through Reserve. It allocates
// blocks that read as zeros, so that in an image without a parent nothing has to be filled; in a
// differencing image a sector that is written in part is filled from the old view. Publish changes
// BAT entries and bits in memory and cannot fail. The block that an old entry named is *retired*:
// it is used again when no table on disk names it any more and no Pin can see it.
//
// The bits of a block mean something only while it is partially present. What they were before is
// unknown then, so a block that becomes partially present has all its bits written.
//
// Until the first Reserve, Discard or Resize nothing is writable: that call is the place where the
// image learns that it is being changed (BeginWriting): both GUIDs that say so are renewed in the
// headers, and the BAT is read once to know which space is free. An image that was opened for
// writing and never written stays as it was, byte by byte.
//
// Flush: one entry of the log
// ---------------------------
// All pages of 4 KiB that are dirty go into one entry of the log, so that what is on disk is always
// the state of some Flush, whole:
//
//   1. copies of the dirty pages are taken
//   2. Sync                  guest data is there before it is named; the pages that the last
//                            entry spoke of are in place
//   3. the entry, Sync       behind the last one, which stays whole until this one is. Its tail is
//                            itself: what came before is in place since step 2
//      (headers, Sync        only the first time: now there is a log)
//   4. the pages in place    made durable by the next Sync; until then the log has them
//
// So a flush costs two Syncs, and one where no page is dirty. An entry takes at most half of the
// log: where the pages that somebody is going to make dirty would not fit any more, a flush comes
// first (MakeRoom). Publish does so, too. To promise room to reservations would not do: a thread
// that holds many could wait for itself.
//
// At the end everything is synced, the headers say that the log is empty, and what the file was
// made too long by is cut off.
//
// Source: [MS-VHDX].
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "formats/format.h"
#include "formats/vhdx/vhdx_image.h"
#include "formats/vhdx/vhdx_journal.h"
#include "formats/vhdx/vhdx_parse.h"
#include "formats/vhdx/vhdx_space.h"
#include "io/extent_list.h"
#include "io/layer.h"
#include "io/pin.h"
#include "io/range_lock.h"
#include "io/table_cache.h"

namespace platter::vhdx {

// See Format::open. A log that is not empty is replayed: in memory, or into the file where it is
// opened for writing.
Result<std::unique_ptr<Layer>> OpenVhdx(std::unique_ptr<Store> store, const OpenOptions& options);

class VhdxReservation;

class VhdxLayer final : public Layer, public Resizer {
 public:
  // `replayed`: how `file` reads where its log is not empty. `fresh` as in OpenOptions.
  VhdxLayer(std::unique_ptr<Store> file, std::unique_ptr<ReplayedStore> replayed, Image image,
            Info info, uint64_t file_size, bool fresh);
  // Flushes and empties the log; errors are lost, so Flush before.
  ~VhdxLayer() override;

  const Info& info() const override { return info_; }
  Pin Hold() override { return pins_.Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override;
  Resizer* resizer() override { return info_.writable ? this : nullptr; }
  Result<> Resize(uint64_t size, Preallocation preallocation) override;

 private:
  friend class VhdxReservation;

  // Why a lookup stopped.
  struct Stop {
    std::optional<uint64_t> missing;  // offset of a slice that is not in memory
    std::optional<Error> failure;
  };

  // What becomes of one block.
  struct Update {
    uint64_t block;
    BatEntry entry;
    bool clear = false;  // all bits of the block, before those of `present` are set
    Range present;       // guest bytes, whole sectors: now in this file
    Range old;           // host bytes that the old entry named, and the new one does not
  };
  uint64_t block_size() const { return image_.metadata.block_size; }
  uint32_t sector() const { return image_.metadata.logical_sector; }
  bool has_parent() const { return image_.metadata.has_parent; }

  template <class T>
  Result<T> Named(Result<T> result) const {
    return result.has_value() ? std::move(result) : std::move(result).WithPrefix(name_);
  }
  Result<> CheckInside(Range want) const;
  Result<> CheckWritable(Range want);
  Result<> CheckDecided() const;
  Result<> BeginWriting();
  Result<> FindSpace();
  Result<> UseEntry(uint64_t index, uint64_t raw);

  // vhdx_map.cc
  Result<size_t> MapAll(Range want, std::span<Extent> out);
  size_t MapLocked(Range want, std::span<Extent> out, Stop& stop);
  bool MapBlock(uint64_t block, Range part, ExtentList& list, Stop& stop);
  bool MapPartial(uint64_t block, uint64_t host, Range part, ExtentList& list, Stop& stop);
  // An entry of the BAT; nothing, and `stop` says why, if it is not in memory.
  std::optional<uint64_t> RawEntry(uint64_t index, Stop& stop);
  TableCache::Ref Slice(uint64_t offset, Stop& stop);
  // Where in the file the bit of the sector at `guest` is, and which of the byte's bits.
  struct BitPlace {
    uint64_t slice;  // offset in the file
    uint64_t bit;    // from the slice's start
  };
  BitPlace LocateBit(uint64_t bitmap_host, uint64_t guest) const;
  Result<> CheckHost(std::string_view what, uint64_t number, Range host) const;
  Extent DataExtent(Range guest, uint64_t host) const;
  uint64_t FileSize() const { return writing_ ? space_.file_size() : file_size_.load(); }

  // vhdx_write.cc
  Range ReservableBlocks(Range want) const;
  uint64_t PagesFor(Range blocks) const;
  Result<> Plan(VhdxReservation& reservation, Range want);
  Result<BatEntry> ReadEntry(uint64_t block);
  Result<> PlanBlock(VhdxReservation& reservation, Range part, BatEntry old,
                     std::optional<uint64_t> fresh);
  Result<> PlanSectors(VhdxReservation& reservation, Range part, Update& update, bool partial);
  Result<bool> IsPresent(uint64_t guest);
  // The sector bitmap of the block's chunk, which is made if need be.
  Result<uint64_t> OwnBitmap(uint64_t block);
  Result<std::optional<uint64_t>> FindOrMakeBitmap(uint64_t block);
  // In memory, all or nothing; the slices concerned are held by the caller.
  Result<uint64_t> Apply(std::span<const Update> updates);
  void ApplyLocked(const Update& update);
  void EditLocked(uint64_t offset, ConstBytes bytes);
  void SetBitsLocked(uint64_t bitmap, Range guest, bool value);
  Result<std::vector<TableCache::Ref>> HoldSlices(Range blocks);

  // vhdx_discard.cc
  Result<Range> DiscardSome(Range want, Kind leave);
  Result<Range> DiscardPart(Range part, Kind leave);
  Result<Range> DiscardBlocks(Range part, Kind leave);

  // vhdx_flush.cc
  struct Batch {
    uint64_t generation = 0;
    std::set<uint64_t> offsets;
    std::vector<LogPage> pages;
    std::vector<TableCache::Piece> pieces;
  };
  bool HasRoomLocked(uint64_t pages) const;
  Result<> MakeRoom(uint64_t pages);
  Result<> FlushLocked(std::vector<LogPage> more = {});
  Batch TakeBatch();

  // vhdx_resize.cc
  Result<> ResizeTo(uint64_t size, Preallocation preallocation);
  Result<> Grow(uint64_t size, Preallocation preallocation);
  Result<> Shrink(uint64_t size);
  Result<> ZeroTail();
  Result<> ClearEntries(uint64_t first_block, uint64_t end, uint64_t known);
  Result<> AllocateFrom(uint64_t block, Preallocation preallocation);
  Result<> MoveBat(uint64_t bytes, Regions& regions, std::vector<LogPage>& pages);
  Result<> CommitSize(uint64_t size, std::vector<LogPage> pages);

  const std::unique_ptr<Store> owned_;
  const std::unique_ptr<ReplayedStore> replayed_;
  Store* const file_;  // one of them
  Image image_;
  const Range log_;  // never moves
  Info info_;
  const std::string name_;
  const bool fresh_;
  PinSet pins_;
  std::atomic<uint64_t> file_size_;   // bytes that may be read, until we write
  std::atomic<bool> writing_{false};  // BeginWriting is done
  // A resize failed at the moment that decides: the file may have either size, and only opening it
  // again tells which. Nothing is written any more.
  std::atomic<bool> undecided_{false};
  RangeLock ranges_;
  SpaceMap space_;
  Mutex create_mutex_;  // see above
  Mutex flush_mutex_;   // guards journal_, image_.headers, durable_
  Journal journal_;
  uint64_t durable_ = 0;  // generations before this are on disk

  Mutex map_mutex_;  // guards the bytes of tables_ and everything below
  TableCache tables_;
  std::set<uint64_t> dirty_pages_;  // offsets in the file
  uint64_t pages_out_ = 0;          // taken by the Flush that is going on
  uint64_t generation_ = 1;         // of what is published now: on disk once durable_ is greater
};

}  // namespace platter::vhdx
