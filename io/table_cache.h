// TableCache: a bounded write-back cache of fixed-size metadata tables of one Store: L2 tables,
// refcount blocks, BATs, grain tables.
//
// Who locks what: the cache guards its own index; the bytes of a table are guarded by the format's
// metadata lock (one mutex per image), under which tables are looked at and edited. Loading a
// table reads the store, so Get is called *without* the metadata lock held (two Gets of one table
// read it once); TryGet never reads and may be called under it. A format's lookup is therefore
//
//   lock; ref = cache.TryGet(offset); if (!ref) { unlock; TRY(cache.Get(offset)); lock; retry; }
//
// Writing back: Flush of a format takes under its metadata lock a copy of everything dirty
// (TakeDirty), and writes the copies with no lock held, in the format's order. Edits made
// meanwhile are dirty again and belong to the next flush: what they depend on may not be durable.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
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
    uint64_t offset() const;     // of the table in the store
    ConstBytes bytes() const;    // under the format's metadata lock
    // The bytes of `part` (relative to the table) for writing; marks them dirty. Under the
    // format's metadata lock.
    Bytes Edit(Range part);

   private:
    friend class TableCache;
    TableCache* cache_ = nullptr;
    Table* table_ = nullptr;
  };

  // A copy of dirty bytes, to be written at `offset` of the store.
  struct Piece {
    uint64_t offset;
    std::vector<std::byte> bytes;
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

  // The table's space was freed: forget it and what is dirty in it. No Ref to it may be alive.
  void Forget(uint64_t offset);

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
  void EvictLocked();

  Store& store_;
  const std::string what_;
  const uint32_t table_size_;
  const size_t max_bytes_;
  mutable Mutex mutex_;  // guards everything below; a leaf
  CondVar loaded_;
  std::unordered_map<uint64_t, std::unique_ptr<Table>> tables_;  // by offset
  std::list<Table*> idle_;  // unpinned and clean, least recently used first
  size_t dirty_bytes_ = 0;
};

}  // namespace platter
