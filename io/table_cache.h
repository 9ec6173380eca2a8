// TableCache: a bounded write-back cache of fixed-size metadata tables of one Store: L2 tables,
// refcount blocks, BATs, grain tables.
//
// Who locks what: the cache guards its own index; the bytes of a table are guarded by the format's
// metadata lock (one mutex per image), under which tables are looked at and edited. Loading a
// table reads the store, so Get is called *without* the metadata lock held (two Gets of one table
// read it once); TryGet never reads and may be called under it. A format's lookup is therefore
//
//   lock; ref = cache.TryGet(offset); if (!ref) { unlock; loaded = TRY(cache.Get(offset)); lock;
//   retry; }
//
// (`loaded` lives on through the retry: otherwise other threads' loads may evict the table first.)
//
// Writing back: Flush of a format takes under its metadata lock a copy of everything dirty
// (TakeDirty), and writes the copies with no lock held, in the format's order. Edits made
// meanwhile are dirty again and belong to the next flush: what they depend on may not be durable.
// Every piece taken is given back by Written or PutBack, once. One flush at a time: two of them
// could write an older copy of a sector over a newer one (a second TakeDirty of a table whose
// pieces are still out is a CHECK failure).
//
// A table stays in memory while it is pinned, dirty, or has pieces out: the store does not hold
// its newest bytes before Written, so a reload would bring old ones back. Forget and Fresh cut a
// table loose instead: a load in flight, a Ref or a piece of it then belongs to nobody, and
// neither Edit, PutBack nor the end of that load touches the table that came after it.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/sync.h"
#include "io/store.h"

namespace platter {

class TableCache {
 public:
  struct Table;

  // Keeps its table in memory while it lives.
  class Ref {
   public:
    Ref() = default;
    Ref(Ref&&) noexcept;
    Ref& operator=(Ref&&) noexcept;
    ~Ref();
    explicit operator bool() const { return table_ != nullptr; }
    uint64_t offset() const;   // of the table in the store
    ConstBytes bytes() const;  // under the format's metadata lock
    // The bytes of `part` (relative to the table) for writing; marks them dirty. Under the
    // format's metadata lock.
    Bytes Edit(Range part);

   private:
    friend class TableCache;
    Ref(TableCache* cache, std::shared_ptr<Table> table);
    void Release();
    TableCache* cache_ = nullptr;
    std::shared_ptr<Table> table_;
  };

  // A copy of dirty bytes, to be written at `offset` of the store.
  struct Piece {
    uint64_t offset;
    std::vector<std::byte> bytes;
    std::shared_ptr<Table> table;  // whose bytes these are; for Written and PutBack
  };

  // Tables are `table_size` bytes at multiples of it from any start; about `max_bytes` are kept
  // (more while pinned or dirty). `what` names a table in errors ("L2 table").
  TableCache(Store& store, std::string what, uint32_t table_size, size_t max_bytes);
  ~TableCache();

  // The table at `offset`, read if need be. Without the metadata lock. A table that reaches past
  // the end of the store is kCorrupt.
  Result<Ref> Get(uint64_t offset);

  // The table if it is in memory.
  Ref TryGet(uint64_t offset);

  // A new table of zeros, dirty as a whole, replacing what may be cached at that offset.
  Ref Fresh(uint64_t offset);

  // The table's space was freed: forget it and what is dirty in it. A Ref that is still alive
  // reads the old bytes; edits through it are lost. False if pieces of it are out (TakeDirty):
  // they may still land in that space, which must not be reused before Written or PutBack.
  bool Forget(uint64_t offset);

  // Copies of all dirty ranges (widened to 512-byte sectors), which become clean, ascending by
  // offset. Under the metadata lock.
  std::vector<Piece> TakeDirty();

  // Marks the pieces' ranges dirty again after a failed write; whatever the tables hold now is
  // what the next TakeDirty returns. Under the metadata lock.
  void PutBack(const std::vector<Piece>& pieces);

  // The pieces are written: their tables may be evicted again.
  void Written(const std::vector<Piece>& pieces);

  // Dirty bytes held now; a format flushes its tables when this passes a bound of its own.
  size_t dirty_bytes() const;

 private:
  std::shared_ptr<Table> FindOrLoad(std::unique_lock<Mutex>& lock, uint64_t offset);
  void LoadLocked(std::unique_lock<Mutex>& lock, Table& table);
  void DetachLocked(uint64_t offset);
  void MarkLocked(Table& table, Range part);
  void SettleLocked(Table& table);
  void UnidleLocked(Table& table);
  void TakeTableLocked(const std::shared_ptr<Table>& table, std::vector<Piece>& pieces);

  Store& store_;
  const std::string what_;
  const uint32_t table_size_;
  const size_t max_bytes_;
  mutable Mutex mutex_;  // guards everything below; a leaf
  CondVar loaded_;
  std::unordered_map<uint64_t, std::shared_ptr<Table>> tables_;  // by offset
  std::map<uint64_t, Table*> dirty_;                             // those with dirty sectors
  std::list<Table*> idle_;  // neither pinned, dirty nor out; least recently used first
  size_t dirty_bytes_ = 0;
};

}  // namespace platter
