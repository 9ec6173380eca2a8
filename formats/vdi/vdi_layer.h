// VdiLayer: a VDI image as a Layer.
//
// What is on disk
// ---------------
// A header in the first sector. The block map: one entry of 32 bits for each block of the disk, the
// number of the host block that holds it or one of two values that name none. The host blocks, one
// behind the other from a place that the header names, each with `block_extra` bytes in front that
// are not ours and stay as they are. The header counts the host blocks: other programs put the next
// one at that number, so everything in use has to be below it.
//
// What is in memory
// -----------------
// Slices of the map, 64 KiB each, in a cache of 16 MiB; the holes among the host blocks, once the
// image is written to.
//
// Who locks what, in this order
// -----------------------------
//   ranges_       blocks of one reservation or discard. Whoever holds a block's range is the only
//                 one who changes its entry, so an entry read once under it stays as it is.
//   flush_mutex_  one Flush at a time; the header.
//   map_mutex_    the bytes of map slices, generation_. Never held across I/O.
//   the allocator's own lock. Never together with map_mutex_.
// and below them the table cache's. A lookup takes map_mutex_ only, and lets go of it to read a
// slice that is not in memory.
//
// Writing
// -------
// Blocks that have a place are written in place. Others come through Reserve, which allocates host
// blocks and tells the engine where the data and the rest of the block go; Publish changes the
// entries in memory. Nothing is writable before the first Reserve, Discard or Resize: that is where
// the modification UUID changes (BeginWriting), durably, because differencing images made on this
// one record it. An image that was opened for writing and never written stays as it was.
//
// Flush: the order of writes, and what a crash leaves
// ---------------------------------------------------
//   1. header      counts every host block that an entry of step 3 names: to count too many loses
//                  space, to count too few would let another program overwrite data
//   2. Sync        data and header are there ...
//   3. block map   ... before an entry names the data. Entries do not cross sectors.
//   4. Sync        what was unlinked is unlinked: its host blocks may be used again (Settle)
// So a crash leaves, at worst, host blocks that nothing names and a count that is too high.
//
// Closing after writes gives back what is not needed: blocks from the end move into holes (where
// that is not too much to move), the header counts what is left, and the file is cut.
//
// Source: VirtualBox, src/VBox/Storage/VDICore.h.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/sync.h"
#include "formats/format.h"
#include "formats/vdi/vdi_alloc.h"
#include "formats/vdi/vdi_map_store.h"
#include "formats/vdi/vdi_parse.h"
#include "io/extent_list.h"
#include "io/layer.h"
#include "io/range_lock.h"
#include "io/table_cache.h"

namespace platter::vdi {

// See Format::open. With options.writable an image whose map contradicts itself is kCorrupt.
Result<std::unique_ptr<Layer>> OpenVdi(std::unique_ptr<Store> store, const OpenOptions& options);

// The header in the first sector of `file`.
Result<Header> ReadHeader(Store& file);

class VdiReservation;

class VdiLayer final : public Layer, public Resizer {
 public:
  struct Parts {
    std::unique_ptr<Store> file;
    Header header;
    Info info;
    bool info_only = false;
    bool fresh = false;  // see OpenOptions
  };
  explicit VdiLayer(Parts parts);
  // Flushes and gives back what can be given back; errors are lost, so Flush before.
  ~VdiLayer() override;

  // Once after construction, unless info_only. Writes nothing.
  Result<> Prepare();

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
  friend class VdiReservation;

  static constexpr uint32_t kSliceBytes = 64 * kKiB, kSliceEntries = kSliceBytes / 4;

  // Why a lookup stopped.
  struct Stop {
    std::optional<uint64_t> missing;  // offset of a slice that is not in memory
    std::optional<Error> failure;     // about the end of the file, as far as we know it
  };
  struct Update {
    uint32_t block;
    uint32_t entry;
  };
  // The block map in memory; made anew when it gets another size or place.
  struct MapCache {
    MapCache(Store& file, const Header& header)
        : store(file, {header.map_offset, header.map_bytes()}, kSliceBytes),
          table(store, "block map", kSliceBytes, 16 * kMiB) {}
    MapStore store;
    TableCache table;
  };

  uint32_t BlockOf(uint64_t guest) const {
    return static_cast<uint32_t>(guest / header_.block_size);
  }
  // The guest bytes of a block, to the end of the disk.
  Range BlockRange(uint32_t block) const {
    return Range{uint64_t{block} * header_.block_size, header_.block_size}.Intersect(
        {0, info_.size});
  }
  static uint64_t SliceOf(uint32_t block) { return block / kSliceEntries * uint64_t{kSliceBytes}; }
  // End of the guest bytes that the slice of `guest` maps, at most the end of the disk.
  uint64_t SliceEnd(uint64_t guest) const;
  uint64_t DataEnd() const;
  bool fixed() const { return header_.type == ImageType::kFixed; }

  // vdi_layer.cc
  template <class T>
  Result<T> Named(Result<T> result) const {
    return result.has_value() ? std::move(result) : std::move(result).WithPrefix(name_);
  }
  Result<> CheckInside(Range want) const;
  Result<> CheckWritable(Range want);
  Result<> BeginWriting();
  Result<> WriteHeaderLocked(const Header& header);
  Result<> FlushLocked();
  Result<> FlushIfCrowded();
  Result<> Close();
  Result<> FillHoles();

  // vdi_map.cc
  Result<size_t> MapAll(Range want, std::span<Extent> out);
  size_t MapLocked(Range want, std::span<Extent> out, Stop& stop);
  bool MapSlice(ConstBytes slice, Range part, ExtentList& list, Stop& stop) const;
  Result<TableCache::Ref> LoadSlice(uint64_t guest);
  // The entries of the blocks that `part` touches, all in `slice`.
  std::vector<uint32_t> ReadEntries(const TableCache::Ref& slice, Range part);
  // What they name now is new for flushes after the returned one.
  uint64_t WriteEntries(TableCache::Ref& slice, std::span<const Update> updates);

  // vdi_write.cc
  Result<> Plan(VdiReservation& reservation, Range want);
  Result<> CheckKnown(uint32_t block, uint32_t entry) const;
  Result<Range> DiscardSome(Range want, Kind leave);
  uint32_t DiscardedEntry(uint32_t old, Kind leave) const;

  // vdi_resize.cc
  Result<> ResizeTo(uint64_t size, Preallocation preallocation);
  Result<> Grow(uint64_t size, Preallocation preallocation);
  Result<> ExtendMap(Header& next);
  Result<> MoveMap(Header& next);
  Result<> VacateFirst(uint32_t blocks);
  Result<> Adopt(const Header& next);
  Result<> ZeroTail();
  Result<> DropEntries(uint32_t first, uint32_t end);
  Result<> Preallocate(uint32_t first, Preallocation preallocation);

  const std::unique_ptr<Store> file_;
  const std::string name_;  // "vdi 'a.vdi'"
  const bool info_only_, fresh_;
  Info info_;  // its size changes by Resize only, which excludes everything else

  PinSet pins_;
  RangeLock ranges_;
  Mutex flush_mutex_;
  // As it is on disk. Its count and modification UUID are guarded by flush_mutex_; the rest changes
  // by Resize only.
  Header header_;
  std::atomic<bool> writing_{false};      // BeginWriting is done
  std::atomic<uint64_t> data_end_{0};     // bytes: end of the file, if nothing grows it
  std::unique_ptr<Allocator> allocator_;  // of a writable layer

  Mutex map_mutex_;  // guards everything below
  std::unique_ptr<MapCache> map_;
  uint64_t generation_ = 0;  // number of the last flush that was begun
};

}  // namespace platter::vdi
