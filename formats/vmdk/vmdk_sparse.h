// SparseExtent: one sparse extent's file: where its grains are, and where new ones go.
//
// What is on disk
// ---------------
// A grain directory names grain tables, whose entries name grains (64 KiB as a rule). Hosted
// extents usually have all of it twice: the second directory and its tables, the redundant ones,
// stand for what is damaged in the first. Both lie before the first grain as a rule, but a table
// may be anywhere. Nothing says which grains are free: what no entry names is, and after a crash is
// lost until somebody copies the disk.
//
// What is in memory
// -----------------
// Slices of the directories and whole grain tables, in caches of fixed size, whatever the header
// claims. Free space that we made ourselves (Discard) is known until the image is closed; other
// space comes from the end of the file, which grows in steps and is cut off at the end. What is
// free when the image is closed becomes a hole of the file.
//
// Who locks what, in this order
// -----------------------------
//   the layer's range lock   whoever holds a grain's range is the only one to change its entry
//   create_mutex_            making a grain table that is not there. Held across I/O.
//   flush_mutex_             one Flush at a time
//   mutex_                   tables in memory, free space, generation_. Never held across I/O but
//                            that of making the file longer.
//
// Writing, and what a crash leaves
// --------------------------------
// Grains are written first, then named: Publish changes both tables in memory, and Flush does
//
//   1. Sync            grains are there ...
//   2. grain tables    ... before they are named, in either table
//      Sync            (only if a directory changed) new tables are whole before they are named
//   3. directories
//   4. Sync            what was unlinked is unlinked: its space may be used again
//
// So whatever entry of the two tables a crash leaves, the old or the new, what it names is there.
// The two may differ then, which check says, and mends. Space that nobody names is lost.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/sync.h"
#include "formats/vmdk/vmdk_parse.h"
#include "formats/vmdk/vmdk_stream.h"
#include "io/extent_list.h"
#include "io/layer.h"
#include "io/pin.h"
#include "io/store.h"
#include "io/table_cache.h"

namespace platter::vmdk {

// Any thread, any number at once. Guest offsets are those within the extent, from 0.
class SparseExtent {
 public:
  // The tables of a guest range, kept in memory: what Publish changes.
  struct Tables {
    TableCache::Ref first, redundant;  // `redundant` may be empty
  };
  struct Update {
    uint64_t index;  // in the table
    uint64_t entry;
  };
  // New space for grains that follow one another. `zeroed`: it reads as zeros.
  struct Run {
    uint64_t host = 0, count = 0;
    bool zeroed = false;
  };

  // `file` outlives this. With `writable` what cannot be written safely is refused: kUnsupported,
  // kCorrupt. `extents`: how many there are of the disk, which share the memory for tables.
  static Result<std::unique_ptr<SparseExtent>> Open(Store& file, bool writable, PinSet& pins,
                                                    size_t extents);
  ~SparseExtent();

  // What is not here is in a layer below, and no hole. Before the first Map.
  void ShowParent() { parent_ = true; }
  bool has_parent() const { return parent_; }

  const SparseGeometry& geometry() const { return geometry_; }
  Store& file() const { return file_; }
  // True if the first directory was of no use and the redundant one is used instead.
  bool used_redundant() const { return used_redundant_; }
  // What an entry of a directory or table names, if it can: kCorrupt says why not.
  Result<uint64_t> GoodTable(uint64_t entry) const;
  Result<Grain> GoodGrain(uint64_t entry) const;
  // Where the stream of a packed grain is, by its marker.
  Result<Range> PackedHost(uint64_t guest, uint64_t host) const;
  // The grain of `guest`, cut off at the end of the extent.
  Range GrainRange(uint64_t guest) const;

  // Adds what `part` means to `list`, shifted by `base`: how many bytes of it, 0 only where `list`
  // is full or, without `may_read`, where something would have to be read.
  Result<uint64_t> Map(Range part, uint64_t base, ExtentList& list, bool may_read);

  // ---- writing; the caller holds the range of what it names ----

  // Before the first change: reads all tables, and refuses an extent that a write would damage
  // further. Writes nothing. kCorrupt, kUnsupported.
  Result<> PrepareFirstWrite();
  // Plain grains are written in place from now on.
  void AllowWritable() { writable_now_ = true; }
  // The part of `part` that one reservation may cover.
  Range OneTable(Range part) const;
  Result<Tables> OwnTables(uint64_t guest);
  // Both tables number `table`, if the directories name them. Nothing where neither does.
  Result<std::optional<Tables>> FindTables(uint64_t table);
  // What the grains that `part` touches are; all in one table.
  Result<std::vector<Grain>> Read(const Tables& tables, Range part);
  Result<Run> Allocate(uint64_t most);
  void GiveBack(Run run);
  void Write(Tables& tables, std::span<const Update> updates);
  // Space of grains that no entry in memory names any more.
  void Retire(uint64_t host);
  uint64_t EntryFor(uint64_t host) const { return host / kSector; }
  bool zeroed_grains() const { return geometry_.flags & kZeroedGrains; }

  bool crowded() const;
  Result<> Flush();
  // Cuts off what the file was made too long by, and gives free space back to the file system: no
  // table says what is free, so nobody would find it again. Nobody else uses the extent, and all is
  // flushed.
  Result<> Trim();

  // ---- resizing: nobody else uses the extent, and all is flushed ----

  // Makes room for `capacity` bytes, all but the header, for which it returns what it has to say.
  // From `end` on, where the disk ended so far, it reads as zeros then.
  Result<SparseGeometry> Extend(uint64_t end, uint64_t capacity);
  // Writes the header, in one step and durably.
  Result<> Adopt(const SparseGeometry& next);
  // Space at the end of the file that reads as zeros, and back again what was taken last.
  Result<uint64_t> TakeEnd(uint64_t length);
  Result<> GiveBackEnd(Range taken);

  // A new stream: grains are appended, tables are kept in memory until the end.
  void BeginStream();
  StreamWriter* stream() const { return stream_.get(); }

 private:
  struct Piece {  // of a map: neighbours that continue one another are one
    Range guest;
    Grain grain;
  };
  struct Stop {  // why a lookup stopped
    TableCache* cache = nullptr;
    uint64_t missing = 0;  // not in memory; in `cache`
    uint64_t instead_of = 0;
    std::optional<Error> failure;
  };
  struct Retired {
    uint64_t host, epoch;
    uint64_t generation;  // of flushes, when it was unlinked; 0: that is durable
  };

  SparseExtent(Store& file, SparseGeometry geometry, uint64_t file_size, PinSet& pins,
               size_t extents);

  Result<> CheckDirectories();
  Result<> PrepareToWrite();
  bool HoldsMetadata(Range host) const;

  // vmdk_sparse.cc; Locked: under mutex_
  std::optional<uint64_t> EntryLocked(uint64_t directory, uint64_t table, Stop& stop);
  std::optional<uint64_t> TableLocked(uint64_t table, Stop& stop);
  std::optional<Grain> RedundantLocked(uint64_t table, uint64_t index, Error why, Stop& stop);
  size_t CollectLocked(Range part, std::span<Piece> pieces, Stop& stop);
  bool CollectTableLocked(ConstBytes bytes, Range part, std::span<Piece> pieces, size_t& count,
                          Stop& stop);
  static bool AddPiece(std::span<Piece> pieces, size_t& count, const Piece& piece, bool packed);
  Result<> Load(Stop& stop, TableCache::Ref& loaded);
  Result<uint64_t> Describe(std::span<const Piece> pieces, uint64_t base, ExtentList& list);
  Result<Extent> PackedExtent(const Piece& piece) const;

  // vmdk_sparse_resize.cc
  Result<> ClearFrom(uint64_t end);
  Result<> ExtendDirectories(SparseGeometry& next);

  // vmdk_sparse_write.cc
  Result<> MakeTables(uint64_t table);
  Result<> GrowLocked(uint64_t end);
  Run TakeFreeLocked(uint64_t most, uint64_t least);
  void AddFreeLocked(uint64_t host, uint64_t length);
  void SettleLocked();

  Store& file_;
  SparseGeometry geometry_;
  bool parent_ = false;
  PinSet& pins_;
  bool used_redundant_ = false;
  std::atomic<bool> writable_now_{false};
  std::atomic<uint64_t> file_end_;  // bytes
  const size_t table_bytes_;        // of tables, that are kept in memory
  std::unique_ptr<StreamWriter> stream_;

  Mutex create_mutex_;
  Mutex flush_mutex_;

  mutable Mutex mutex_;                // guards everything below
  std::set<uint64_t> bad_tables_;      // places of tables that could not be read
  std::map<uint64_t, uint64_t> free_;  // runs of bytes
  std::deque<Retired> retired_;
  uint64_t next_ = 0;        // bytes: new space comes from here
  uint64_t used_end_ = 0;    // bytes: end of what was handed out or was there
  uint64_t generation_ = 1;  // number of the last flush that was begun, from 1
  TableCache directory_;     // slices of a sector
  TableCache tables_;
};

}  // namespace platter::vmdk
