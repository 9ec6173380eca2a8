#include "io/table_cache.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/math.h"
#include "io/buffer.h"

namespace platter {

namespace {
constexpr uint32_t kSector = 512;  // bytes: the unit of dirtiness, and of what a disk writes whole
}

// Everything but `bytes` is guarded by the cache's mutex. A table that is in none of the cache's
// containers any more is `detached`.
struct TableCache::Table {
  enum State : uint8_t { kLoading, kReady, kFailed };

  Table(uint64_t at, uint32_t size, State first)
      : offset(at), state(first), bytes(size), dirty(DivideUp(size, kSector)) {}

  const uint64_t offset;
  State state;
  bool detached = false;
  bool idle = false;  // in idle_, at idle_at
  uint32_t pins = 0;  // Refs, and threads that wait for the load
  uint32_t out = 0;   // pieces taken and neither Written nor PutBack
  uint32_t dirty_sectors = 0;
  Buffer bytes;
  std::vector<bool> dirty;  // by sector
  std::list<Table*>::iterator idle_at;
  std::optional<Error> failure;  // set with kFailed
};

TableCache::TableCache(Store& store, std::string what, uint32_t table_size, size_t max_bytes)
    : store_(store), what_(std::move(what)), table_size_(table_size), max_bytes_(max_bytes) {
  CHECK(table_size > 0);
}

TableCache::~TableCache() {
  for (auto& [offset, table] : tables_) CHECK(table->pins == 0);
}

TableCache::Ref::Ref(TableCache* cache, std::shared_ptr<Table> table)
    : cache_(cache), table_(std::move(table)) {}

TableCache::Ref::Ref(Ref&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)), table_(std::move(other.table_)) {}

TableCache::Ref& TableCache::Ref::operator=(Ref&& other) noexcept {
  if (this == &other) return *this;
  Release();
  cache_ = std::exchange(other.cache_, nullptr);
  table_ = std::move(other.table_);
  return *this;
}

TableCache::Ref::~Ref() { Release(); }

void TableCache::Ref::Release() {
  if (!table_) return;
  {
    std::lock_guard lock(cache_->mutex_);
    --table_->pins;
    cache_->SettleLocked(*table_);
  }
  table_.reset();
}

uint64_t TableCache::Ref::offset() const { return table_->offset; }

ConstBytes TableCache::Ref::bytes() const { return table_->bytes.bytes(); }

Bytes TableCache::Ref::Edit(Range part) {
  CHECK(FitsIn(part.offset, part.length, cache_->table_size_));
  std::lock_guard lock(cache_->mutex_);
  cache_->MarkLocked(*table_, part);
  return table_->bytes.bytes().subspan(part.offset, part.length);
}

Result<TableCache::Ref> TableCache::Get(uint64_t offset) {
  sched::Yield("table get");
  std::unique_lock lock(mutex_);
  while (true) {
    std::shared_ptr<Table> table = FindOrLoad(lock, offset);
    // Replaced while we waited for the load: what was read may be older than what is there now.
    if (table->detached && tables_.contains(offset)) {
      --table->pins;
      continue;
    }
    if (table->state == Table::kReady) return Ref(this, std::move(table));
    --table->pins;
    return std::unexpected(table->failure->Clone());
  }
}

// The table, loaded or failed, with a pin of ours. Lets go of the lock while it loads or waits.
std::shared_ptr<TableCache::Table> TableCache::FindOrLoad(std::unique_lock<Mutex>& lock,
                                                          uint64_t offset) {
  auto found = tables_.find(offset);
  std::shared_ptr<Table> table;
  if (found != tables_.end()) {
    table = found->second;
    UnidleLocked(*table);
    ++table->pins;  // before the wait, so that it is not evicted between its load and our turn
    loaded_.Wait(lock, [&] { return table->state != Table::kLoading; });
  } else {
    table = std::make_shared<Table>(offset, table_size_, Table::kLoading);
    tables_.emplace(offset, table);
    ++table->pins;
    LoadLocked(lock, *table);
  }
  return table;
}

void TableCache::LoadLocked(std::unique_lock<Mutex>& lock, Table& table) {
  lock.unlock();
  Result<> read = store_.Read(table.offset, table.bytes.bytes());
  lock.lock();
  if (read.has_value()) {
    table.state = Table::kReady;
  } else {
    table.failure.emplace(
        std::move(read.error()).WithPrefix(fmt::format("{} at {:#x}", what_, table.offset)));
    table.state = Table::kFailed;
    // A later Get tries again; those who wait now hold the table itself.
    if (!table.detached) DetachLocked(table.offset);
  }
  loaded_.NotifyAll();
}

TableCache::Ref TableCache::TryGet(uint64_t offset) {
  std::lock_guard lock(mutex_);
  auto found = tables_.find(offset);
  if (found == tables_.end() || found->second->state != Table::kReady) return Ref();
  UnidleLocked(*found->second);
  ++found->second->pins;
  return Ref(this, found->second);
}

TableCache::Ref TableCache::Fresh(uint64_t offset) {
  auto table = std::make_shared<Table>(offset, table_size_, Table::kReady);
  std::memset(table->bytes.data(), 0, table_size_);
  std::lock_guard lock(mutex_);
  DetachLocked(offset);
  tables_.emplace(offset, table);
  ++table->pins;
  MarkLocked(*table, Range{0, table_size_});
  return Ref(this, std::move(table));
}

bool TableCache::Forget(uint64_t offset) {
  std::lock_guard lock(mutex_);
  auto found = tables_.find(offset);
  if (found == tables_.end()) return true;
  bool none_out = found->second->out == 0;
  DetachLocked(offset);
  return none_out;
}

std::vector<TableCache::Piece> TableCache::TakeDirty() {
  sched::Yield("table take");
  std::lock_guard lock(mutex_);
  std::vector<Piece> pieces;
  for (auto& [offset, table] : dirty_) TakeTableLocked(tables_.at(offset), pieces);
  dirty_.clear();
  dirty_bytes_ = 0;
  return pieces;
}

// One piece for each run of dirty sectors.
void TableCache::TakeTableLocked(const std::shared_ptr<Table>& table, std::vector<Piece>& pieces) {
  CHECK(table->out == 0);  // one flush at a time
  const size_t sectors = table->dirty.size();
  for (size_t first = 0; first < sectors;) {
    if (!table->dirty[first]) {
      ++first;
      continue;
    }
    size_t last = first;
    while (last < sectors && table->dirty[last]) table->dirty[last++] = false;
    Range part = Range::FromTo(first * kSector, std::min<uint64_t>(last * kSector, table_size_));
    ConstBytes bytes = table->bytes.bytes().subspan(part.offset, part.length);
    pieces.push_back(Piece{table->offset + part.offset, {bytes.begin(), bytes.end()}, table});
    ++table->out;
    first = last;
  }
  table->dirty_sectors = 0;
}

void TableCache::PutBack(const std::vector<Piece>& pieces) {
  std::lock_guard lock(mutex_);
  for (const Piece& piece : pieces) {
    CHECK(piece.table->out > 0);
    --piece.table->out;
    MarkLocked(*piece.table, Range{piece.offset - piece.table->offset, piece.bytes.size()});
  }
}

void TableCache::Written(const std::vector<Piece>& pieces) {
  std::lock_guard lock(mutex_);
  for (const Piece& piece : pieces) {
    CHECK(piece.table->out > 0);
    --piece.table->out;
    SettleLocked(*piece.table);
  }
}

size_t TableCache::dirty_bytes() const {
  std::lock_guard lock(mutex_);
  return dirty_bytes_;
}

// Takes the table at `offset`, if any, out of every container. Whoever holds it may go on reading.
void TableCache::DetachLocked(uint64_t offset) {
  auto found = tables_.find(offset);
  if (found == tables_.end()) return;
  Table& table = *found->second;
  UnidleLocked(table);
  dirty_.erase(offset);
  dirty_bytes_ -= size_t{table.dirty_sectors} * kSector;
  table.dirty_sectors = 0;
  table.detached = true;
  tables_.erase(found);
}

// Marks the sectors of `part` (relative to the table) as dirty.
void TableCache::MarkLocked(Table& table, Range part) {
  if (table.detached || part.empty()) return;
  for (size_t sector = part.offset / kSector; sector * kSector < part.end(); ++sector) {
    if (table.dirty[sector]) continue;
    table.dirty[sector] = true;
    ++table.dirty_sectors;
    dirty_bytes_ += kSector;
  }
  UnidleLocked(table);
  dirty_.emplace(table.offset, &table);
}

// A table that nothing holds any more becomes evictable, and the oldest such go while there are
// too many.
void TableCache::SettleLocked(Table& table) {
  if (table.detached || table.idle || table.state != Table::kReady) return;
  if (table.pins > 0 || table.out > 0 || table.dirty_sectors > 0) return;
  table.idle_at = idle_.insert(idle_.end(), &table);
  table.idle = true;
  while (!idle_.empty() && tables_.size() > max_bytes_ / table_size_) {
    DetachLocked(idle_.front()->offset);
  }
}

void TableCache::UnidleLocked(Table& table) {
  if (!table.idle) return;
  idle_.erase(table.idle_at);
  table.idle = false;
}

}  // namespace platter
