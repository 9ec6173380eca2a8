// New grains and tables of a hosted sparse extent. The order of writes is in vmdk_sparse.h.
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/endian.h"
#include "formats/vmdk/vmdk_sparse.h"

namespace platter::vmdk {

namespace {

constexpr uint64_t kGrowBytes = kMiB;    // of the file, at least
constexpr uint64_t kMostRun = 8 * kMiB;  // bytes in one reservation
constexpr size_t kMostRetired = 65536;
constexpr uint32_t kTableEntries = 512;         // the format's
constexpr uint64_t kHostLimit = kSector << 32;  // what entries can name: 2 TiB
constexpr uint64_t kLongEnough = 16;            // grains: a good run of free space
constexpr size_t kRunsTried = 64;               // of free space, for one request

template <class Piece>
Result<> WritePieces(Store& file, std::string_view what, const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces) TRY_AS(what, file.Write(piece.offset, piece.bytes));
  return {};
}

}  // namespace

// What we can write safely: plain hosted extents, whole and consistent ones.
Result<> SparseExtent::PrepareToWrite() {
  const SparseGeometry& g = geometry_;
  if (g.kind != SparseKind::kHosted) {
    return Fail(Code::kUnsupported, "{} extents can be read only",
                g.kind == SparseKind::kCowd ? "vmfsSparse" : "seSparse");
  }
  if (g.compressed() || g.markers() || g.at_end) return {};  // the layer says what it may not do
  if (g.table_entries != kTableEntries) {
    return Fail(Code::kUnsupported, "grain tables of {} entries can be read only", g.table_entries);
  }
  if (used_redundant_) {
    return Fail(Code::kCorrupt,
                "the first grain directory is damaged: the disk can be read, or repaired by check");
  }
  if (!file_.caps().block_device) {
    std::lock_guard lock(mutex_);
    used_end_ = RoundUp(file_end_, kSector);
    next_ = RoundUp(std::max({used_end_, g.directory + g.directory_entries * g.entry_size(),
                              std::min<uint64_t>(g.overhead, kHostLimit)}),
                    kSector);
    return {};
  }
  return Fail(Code::kUnsupported, "sparse extents on devices can be read only");
}

Range SparseExtent::OneTable(Range part) const {
  const uint64_t span = geometry_.table_span();
  uint64_t end = RoundDown(part.offset, span) + span;
  uint64_t most = std::max(geometry_.grain, RoundDown(kMostRun, geometry_.grain));
  end = std::min({end, part.end(), RoundDown(part.offset, geometry_.grain) + most});
  return Range::FromTo(part.offset, end);
}

Result<std::optional<SparseExtent::Tables>> SparseExtent::FindTables(uint64_t table) {
  TableCache::Ref loaded[2];
  while (true) {
    Stop stop;
    size_t which = 0;
    {
      std::lock_guard lock(mutex_);
      Tables tables;
      auto look = [&](uint64_t directory, TableCache::Ref& into) -> Result<bool> {
        auto entry = EntryLocked(directory, table, stop);
        if (!entry) return true;
        uint64_t place = TRY(GoodTable(*entry));
        if (place == 0) return true;
        into = tables_.TryGet(place);
        if (!into) stop = {&tables_, place, 0, {}};
        return true;
      };
      auto what = fmt::format("grain directory entry {}", table);
      TRY_AS(what, look(geometry_.directory, tables.first));
      if (!stop.cache && geometry_.redundant) {
        which = 1;
        TRY_AS(fmt::format("redundant {}", what), look(*geometry_.redundant, tables.redundant));
      }
      if (!stop.cache) {
        if (!tables.first && !tables.redundant) return std::optional<Tables>();
        bool both = tables.first && (tables.redundant || !geometry_.redundant);
        if (both) return std::optional<Tables>(std::move(tables));
        return Fail(Code::kCorrupt,
                    "grain directory entry {}: the two directories contradict each other; "
                    "repair with check",
                    table);
      }
    }
    loaded[which] =
        TRY_AS(fmt::format("grain directory entry {}", table), stop.cache->Get(stop.missing));
  }
}

Result<SparseExtent::Tables> SparseExtent::OwnTables(uint64_t guest) {
  const uint64_t table = guest / geometry_.table_span();
  while (true) {
    auto found = TRY(FindTables(table));
    if (found) return std::move(*found);
    TRY(MakeTables(table));
  }
}

// New tables, one after the other, at the end of the file.
Result<> SparseExtent::MakeTables(uint64_t table) {
  std::lock_guard create(create_mutex_);
  if (TRY(FindTables(table))) return {};  // somebody else was faster
  const uint64_t at = table * geometry_.entry_size(), slice = RoundDown(at, kSector);
  // In memory, so that nothing can fail below.
  auto first = TRY(directory_.Get(geometry_.directory + slice));
  TableCache::Ref second;
  if (geometry_.redundant) second = TRY(directory_.Get(*geometry_.redundant + slice));
  const uint64_t length = RoundUp(geometry_.table_bytes(), kSector);
  std::lock_guard lock(mutex_);
  const uint64_t place = next_, end = place + length * (second ? 2 : 1);
  if (end > kHostLimit) return Fail(Code::kNoSpace, "the extent would be larger than 2 TiB");
  TRY(GrowLocked(end));
  next_ = used_end_ = end;
  auto enter = [&](TableCache::Ref& directory, uint64_t host) {
    tables_.Fresh(host);
    StoreAt(directory.Edit({at - slice, sizeof(le32)}), 0,
            le32(static_cast<uint32_t>(host / kSector)));
  };
  enter(first, place);
  if (second) enter(second, place + length);
  return {};
}

Result<std::vector<Grain>> SparseExtent::Read(const Tables& tables, Range part) {
  std::lock_guard lock(mutex_);
  std::vector<Grain> grains;
  for (uint64_t at = RoundDown(part.offset, geometry_.grain); at < part.end();
       at += geometry_.grain) {
    uint64_t index = at / geometry_.grain % geometry_.table_entries;
    Result<Grain> grain = GoodGrain(LoadEntry(geometry_, tables.first.bytes(), index));
    if (!grain.has_value()) {
      if (!grains.empty()) break;
      return std::unexpected(std::move(grain.error())
                                 .WithPrefix(fmt::format("grain table {}, entry {}",
                                                         at / geometry_.table_span(), index)));
    }
    // The last grain may be there in part: now all of it is, so that it can be written in place.
    if (grain->kind == Grain::kData && grain->host + geometry_.grain > file_end_) {
      TRY(GrowLocked(grain->host + geometry_.grain));
      used_end_ = std::max(used_end_, grain->host + geometry_.grain);
      next_ = std::max(next_, used_end_);
    }
    grains.push_back(*grain);
  }
  return grains;
}

// The file reaches to `end`.
Result<> SparseExtent::GrowLocked(uint64_t end) {
  if (end <= file_end_) return {};
  uint64_t size = RoundUp(end, kGrowBytes);
  TRY(file_.Resize(size));
  file_end_ = size;
  return {};
}

Result<SparseExtent::Run> SparseExtent::Allocate(uint64_t most) {
  CHECK(most > 0);
  const uint64_t grain = geometry_.grain;
  std::lock_guard lock(mutex_);
  SettleLocked();
  Run run = TakeFreeLocked(most, std::min(most, kLongEnough));
  if (run.count > 0) return run;
  const uint64_t at = RoundUp(next_, grain);
  uint64_t count = std::min(most, (kHostLimit - std::min(at, kHostLimit)) / grain);
  if (count == 0) {
    run = TakeFreeLocked(most, 1);
    if (run.count > 0) return run;
    return Fail(Code::kNoSpace, "the extent would be larger than 2 TiB");
  }
  TRY(GrowLocked(at + count * grain));
  next_ = used_end_ = at + count * grain;
  return Run{at, count, true};
}

// The first of some runs of free space that has `least` grains; none: an empty run.
SparseExtent::Run SparseExtent::TakeFreeLocked(uint64_t most, uint64_t least) {
  const uint64_t grain = geometry_.grain;
  size_t tries = 0;
  for (auto it = free_.begin(); it != free_.end() && tries < kRunsTried; ++it, ++tries) {
    uint64_t count = std::min(it->second / grain, most);
    if (count < least) continue;
    Run run{it->first, count, false};
    uint64_t rest = it->second - count * grain;
    free_.erase(it);
    if (rest > 0) free_.emplace(run.host + count * grain, rest);
    return run;
  }
  return {};
}

void SparseExtent::AddFreeLocked(uint64_t host, uint64_t length) {
  auto after = free_.upper_bound(host);
  if (after != free_.begin()) {
    auto before = std::prev(after);
    if (before->first + before->second == host) {
      host = before->first;
      length += before->second;
      free_.erase(before);
    }
  }
  if (after != free_.end() && host + length == after->first) {
    length += after->second;
    free_.erase(after);
  }
  free_.emplace(host, length);
}

void SparseExtent::GiveBack(Run run) {
  if (run.count == 0) return;
  std::lock_guard lock(mutex_);
  AddFreeLocked(run.host, run.count * geometry_.grain);
}

void SparseExtent::Write(Tables& tables, std::span<const Update> updates) {
  std::lock_guard lock(mutex_);
  for (const Update& update : updates) {
    const Range place{update.index * sizeof(le32), sizeof(le32)};
    const le32 entry(static_cast<uint32_t>(update.entry));
    StoreAt(tables.first.Edit(place), 0, entry);
    if (tables.redundant) StoreAt(tables.redundant.Edit(place), 0, entry);
  }
}

void SparseExtent::Retire(uint64_t host) {
  std::lock_guard lock(mutex_);
  retired_.push_back({host, pins_.Now(), generation_});
}

// What was unlinked durably and cannot be seen any more is free. What the flush that is under way
// makes durable has its number only when it is done, so a grain waits for the next one begun.
void SparseExtent::SettleLocked() {
  while (!retired_.empty() && retired_.front().generation == 0 &&
         pins_.Reached(retired_.front().epoch)) {
    AddFreeLocked(retired_.front().host, geometry_.grain);
    retired_.pop_front();
  }
}

bool SparseExtent::crowded() const {
  if (tables_.dirty_bytes() > table_bytes_ / 2) return true;
  std::lock_guard lock(mutex_);
  return retired_.size() > kMostRetired;
}

Result<> SparseExtent::Flush() {
  if (stream_) return stream_->Finish();
  std::lock_guard flush(flush_mutex_);
  std::vector<TableCache::Piece> tables, directories;
  uint64_t durable = 0;
  {
    std::lock_guard lock(mutex_);
    durable = ++generation_;
    tables = tables_.TakeDirty();
    directories = directory_.TakeDirty();
  }
  auto write = [&]() -> Result<> {
    TRY(file_.Sync());
    if (tables.empty() && directories.empty()) return {};
    TRY(WritePieces(file_, "grain table", tables));
    if (!directories.empty()) {
      TRY(file_.Sync());
      TRY(WritePieces(file_, "grain directory", directories));
    }
    return file_.Sync();
  };
  Result<> written = write();
  std::lock_guard lock(mutex_);
  if (!written.has_value()) {
    tables_.PutBack(tables);
    directory_.PutBack(directories);
    return written;
  }
  tables_.Written(tables);
  directory_.Written(directories);
  for (Retired& retired : retired_) {
    if (retired.generation < durable) retired.generation = 0;
  }
  SettleLocked();
  return {};
}

Result<> SparseExtent::Trim() {
  std::lock_guard lock(mutex_);
  if (used_end_ == 0) return {};
  SettleLocked();
  while (!free_.empty()) {
    auto last = std::prev(free_.end());
    if (last->first + last->second != used_end_) break;
    used_end_ = last->first;
    free_.erase(last);
  }
  if (used_end_ < file_end_) {
    TRY(file_.Resize(used_end_));
    file_end_ = used_end_;
  }
  if (!file_.caps().punch) return {};
  for (auto [host, length] : free_) TRY(file_.Zero({host, length}, /*may_unmap=*/true));
  return {};
}

// What an empty stream ends with stays until the first grain goes over it.
void SparseExtent::BeginStream() {
  stream_ = std::make_unique<StreamWriter>(file_, geometry_);
  file_end_ = UINT64_MAX;  // only what was published is named, and that is there
}

}  // namespace platter::vmdk
