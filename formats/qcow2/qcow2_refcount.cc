#include "formats/qcow2/qcow2_refcount.h"

#include <algorithm>

#include "base/check.h"

namespace platter::qcow2 {
namespace {

constexpr uint64_t kSector = 512;
constexpr size_t kCacheBytes = 16 * kMiB;

uint64_t SliceBytes(const Header& header) {
  return std::min<uint64_t>(header.cluster_size(), 64 * kKiB);
}

}  // namespace

Refcounts::Refcounts(Store& store, const Header& header, std::vector<Range> fixed,
                     WriteHeader write_header)
    : store_(store),
      header_(header),
      fixed_(std::move(fixed)),
      write_header_(std::move(write_header)),
      table_offset_(header.refcount_table_offset),
      blocks_(store, "refcount block", static_cast<uint32_t>(SliceBytes(header)), kCacheBytes) {}

Result<> Refcounts::Load() {
  std::lock_guard lock(mutex_);
  uint64_t bytes = header_.refcount_table_entries() * 8;
  uint64_t size = TRY(store_.Size());
  if (bytes == 0 || !FitsIn(table_offset_, bytes, size)) {
    return Fail(Code::kCorrupt,
                "refcount table: {} bytes at {:#x} are not inside the file ({:#x} bytes)", bytes,
                table_offset_, size);
  }
  std::vector<be64> raw(header_.refcount_table_entries());
  TRY_AS("refcount table", store_.Read(table_offset_, std::as_writable_bytes(std::span(raw))));
  table_.assign(raw.begin(), raw.end());
  table_dirty_.assign(DivideUp(bytes, kSector), false);
  fixed_.push_back({table_offset_, bytes});
  allocated_end_ = RoundUp(size, header_.cluster_size());
  return {};
}

bool Refcounts::IsFixed(Range host) const {
  return std::any_of(fixed_.begin(), fixed_.end(), [&](Range r) { return r.Overlaps(host); });
}

void Refcounts::MoveFixed(Range from, Range to) {
  std::lock_guard lock(mutex_);
  std::erase_if(fixed_, [&](Range range) { return range.offset == from.offset; });
  fixed_.push_back(to);
}

Result<Refcounts::Entry> Refcounts::Find(uint64_t cluster) {
  uint64_t table_index = cluster / clusters_per_block();
  if (table_index >= table_.size()) return Entry{};
  uint64_t block = table_[table_index] & kRefcountOffsetMask;
  if (block == 0) return Entry{};
  if (!IsAligned(block, header_.cluster_size()) || IsFixed({block, header_.cluster_size()})) {
    return Fail(Code::kCorrupt, "refcount table entry {}: block offset {:#x} is misplaced",
                table_index, block);
  }
  uint64_t index = cluster % clusters_per_block();
  uint64_t per_slice = SliceBytes(header_) * 8 / header_.refcount_bits();
  uint64_t at = block + index / per_slice * SliceBytes(header_);
  TableCache::Ref slice = blocks_.TryGet(at);
  if (!slice) slice = TRY(blocks_.Get(at));
  return Entry{std::move(slice), index % per_slice};
}

Result<uint64_t> Refcounts::Get(uint64_t cluster) {
  Entry entry = TRY(Find(cluster));
  if (!entry.slice) return 0;
  return LoadRefcount(entry.slice.bytes(), header_.refcount_order, entry.index);
}

Result<> Refcounts::Set(uint64_t cluster, uint64_t count) {
  Entry entry = TRY(Find(cluster));
  CHECK(entry.slice);
  uint64_t bit = entry.index << header_.refcount_order;
  Range part = Range::FromTo(bit / 8, std::max(bit / 8 + 1, (bit + header_.refcount_bits()) / 8));
  // StoreRefcount counts from the start of the bytes it gets.
  uint64_t in_part = header_.refcount_bits() >= 8 ? 0 : bit % 8 >> header_.refcount_order;
  StoreRefcount(entry.slice.Edit(part), header_.refcount_order, in_part, count);
  return {};
}

Result<bool> Refcounts::IsFree(uint64_t cluster) {
  Range host{cluster << header_.cluster_bits, header_.cluster_size()};
  if (IsFixed(host)) return false;
  return TRY(Get(cluster)) == 0;
}

Result<Range> Refcounts::AllocateLocked(uint64_t first, uint64_t most) {
  // Blocks that have to be made on the way take free clusters, the first of them `first` itself.
  while (true) {
    while (!TRY(IsFree(first))) ++first;
    TRY(EnsureBlock(first));
    if (TRY(IsFree(first))) break;
  }
  constexpr uint64_t kHostLimit = uint64_t{1} << 55;
  uint64_t end = first;
  while (end - first < most && end < kHostLimit >> header_.cluster_bits && TRY(IsFree(end))) {
    if (!TRY(Find(end)).slice) break;  // the next block is made when a run starts in it
    TRY(Set(end, 1));
    ++end;
  }
  if (end == first) return Fail(Code::kNoSpace, "the image file would pass 32 PiB");
  Range run{first << header_.cluster_bits, (end - first) << header_.cluster_bits};
  allocated_end_ = std::max(allocated_end_.load(), run.end());
  return run;
}

Result<Refcounts::Run> Refcounts::Allocate(uint64_t most) {
  std::lock_guard lock(mutex_);
  uint64_t virgin_from = allocated_end_;
  Range host = TRY(AllocateLocked(cursor_, most));
  cursor_ = host.end() >> header_.cluster_bits;
  return Run{host, virgin_from};
}

Result<> Refcounts::EnsureBlock(uint64_t cluster) {
  uint64_t table_index = cluster / clusters_per_block();
  if (table_index >= table_.size()) return GrowTable(cluster);
  if ((table_[table_index] & kRefcountOffsetMask) != 0) return {};
  // Nothing that the missing block covers is in use: it lives in the first of these clusters.
  uint64_t block = cluster << header_.cluster_bits;
  for (uint64_t at = 0; at < header_.cluster_size(); at += SliceBytes(header_))
    blocks_.Fresh(block + at);
  table_[table_index] = block;
  table_dirty_[table_index * 8 / kSector] = true;
  allocated_end_ = std::max(allocated_end_.load(), block + header_.cluster_size());
  return Set(cluster, 1);
}

// The new table and the blocks that count its clusters go to the first clusters that the old table
// cannot count, which nothing can be using.
Result<> Refcounts::GrowTable(uint64_t cluster) {
  const uint64_t size = header_.cluster_size(), per_block = clusters_per_block();
  uint64_t first = std::max(cluster, table_.size() * per_block);
  uint64_t table_clusters = DivideUp(table_.size() * 8 * 3 / 2, size), blocks = 0;
  while (true) {  // until the table covers its own clusters and the blocks that count them
    uint64_t covered = table_clusters * size / 8 * per_block;
    uint64_t end = first + table_clusters + blocks;
    uint64_t blocks_needed = DivideUp(end, per_block) - first / per_block;
    if (blocks_needed <= blocks && end <= covered) break;
    blocks = std::max(blocks, blocks_needed);
    if (end > covered) ++table_clusters;
  }
  if (table_clusters * size > kMaxRefcountTableBytes) {
    return Fail(Code::kNoSpace, "the refcount table would be over {} MiB: use larger clusters",
                kMaxRefcountTableBytes / kMiB);
  }
  std::vector<uint64_t> table = table_;
  table.resize(table_clusters * size / 8);
  std::vector<std::byte> block(size);
  for (uint64_t i = 0; i < blocks; ++i) {
    uint64_t block_index = first / per_block + i;
    std::fill(block.begin(), block.end(), std::byte{0});
    for (uint64_t c = std::max(first, block_index * per_block);
         c < std::min(first + blocks + table_clusters, (block_index + 1) * per_block); ++c) {
      StoreRefcount(block, header_.refcount_order, c % per_block, 1);
    }
    table[block_index] = (first + i) * size;
    TRY_AS("new refcount block", store_.Write(table[block_index], block));
  }
  std::vector<be64> raw(table.begin(), table.end());
  uint64_t offset = (first + blocks) * size;
  TRY_AS("new refcount table", store_.Write(offset, std::as_bytes(std::span(raw))));
  // Blocks that the old table got since the last flush are named by the new one as well, so they
  // must be durable before the header names it.
  Dirty dirty{blocks_.TakeDirty(), {}};
  for (const TableCache::Piece& piece : dirty.blocks) {
    Result<> written = store_.Write(piece.offset, piece.bytes);
    if (!written) {
      blocks_.PutBack(dirty.blocks);
      return written;
    }
  }
  blocks_.Written(dirty.blocks);
  TRY(store_.Sync());
  TRY(write_header_(offset, static_cast<uint32_t>(table_clusters)));

  Range old{table_offset_, RoundUp(table_.size() * 8, size)};
  std::erase(fixed_, Range{table_offset_, table_.size() * 8});
  table_offset_ = offset;
  table_ = std::move(table);
  table_dirty_.assign(DivideUp(table_.size() * 8, kSector), false);
  fixed_.push_back({table_offset_, table_.size() * 8});
  allocated_end_ = std::max(allocated_end_.load(), offset + table_clusters * size);
  for (uint64_t at = old.offset; at < old.end(); at += size)
    TRY(ReleaseLocked(at >> header_.cluster_bits));
  return {};
}

Result<std::vector<uint64_t>> Refcounts::AllocatePacked(std::span<const uint32_t> sizes,
                                                        uint64_t limit) {
  std::lock_guard lock(mutex_);
  const uint64_t size = header_.cluster_size(), max = header_.refcount_max();
  uint64_t total = 0;
  for (uint32_t unit : sizes) total += unit;

  // Go on where the last batch ended if its cluster may be counted once more, and behind it is
  // room.
  uint64_t at = packed_end_, end = RoundUp(at, size);
  if (at == end || TRY(Get(at / size)) >= max) at = end = 0;
  uint64_t more = DivideUp(total - std::min(total, end - at), size);
  if (more > 0) {
    Range run = TRY(AllocateLocked(at ? std::max(cursor_, end / size) : cursor_,
                                   more + (max == 1 ? sizes.size() : 0)));
    cursor_ = run.end() / size;
    if (run.offset != end) {
      at = run.offset;
      end = run.offset;
    }
    end += run.length;
  }
  uint64_t fresh = end - (at == packed_end_ ? (end - RoundUp(at, size))
                                            : end - at);  // first cluster counted by Allocate alone
  std::vector<uint64_t> placed;
  uint64_t touched = fresh;  // clusters from here on carry only the count that Allocate gave them
  for (uint32_t unit : sizes) {
    uint64_t start = at;
    if (start % size != 0 && TRY(Get(start / size)) >= max && start / size * size < touched)
      start = RoundUp(start, size);
    if (start + unit > end || start + unit > limit) break;
    for (uint64_t c = start / size; c <= (start + unit - 1) / size; ++c) {
      if (c * size >= touched) {
        touched = (c + 1) * size;  // this unit takes the count that is there
      } else {
        TRY(Set(c, TRY(Get(c)) + 1));
      }
    }
    placed.push_back(start);
    at = start + unit;
  }
  for (uint64_t c = std::max(touched, RoundUp(at, size)); c < end; c += size)
    TRY(ReleaseLocked(c / size));
  packed_end_ = at;
  if (placed.empty())
    return Fail(Code::kNoSpace, "no room for a compressed cluster below {:#x}", limit);
  return placed;
}

Result<> Refcounts::ReleaseLocked(uint64_t cluster) {
  uint64_t count = TRY(Get(cluster));
  if (count == 0) {
    return Fail(Code::kCorrupt, "host cluster {:#x} is released but its refcount is zero",
                cluster << header_.cluster_bits);
  }
  TRY(Set(cluster, count - 1));
  if (count == 1) {
    cursor_ = std::min(cursor_, cluster);
    // Packing on in a cluster that is free now would use it uncounted.
    if (packed_end_ != 0 && packed_end_ % header_.cluster_size() != 0 &&
        packed_end_ >> header_.cluster_bits == cluster)
      packed_end_ = 0;
  }
  return {};
}

Result<> Refcounts::Release(Range host) {
  std::lock_guard lock(mutex_);
  Range clusters = host.Outward(header_.cluster_size());
  for (uint64_t at = clusters.offset; at < clusters.end(); at += header_.cluster_size()) {
    TRY(ReleaseLocked(at >> header_.cluster_bits));
  }
  return {};
}

Refcounts::Dirty Refcounts::TakeDirty() {
  std::lock_guard lock(mutex_);
  Dirty dirty{blocks_.TakeDirty(), {}};
  for (size_t sector = 0; sector < table_dirty_.size(); ++sector) {
    if (!table_dirty_[sector]) continue;
    table_dirty_[sector] = false;
    TableCache::Piece piece{table_offset_ + sector * kSector, std::vector<std::byte>(kSector), {}};
    for (size_t i = 0; i < kSector / 8 && sector * kSector / 8 + i < table_.size(); ++i) {
      StoreAt(piece.bytes, i * 8, be64(table_[sector * kSector / 8 + i]));
    }
    dirty.table.push_back(std::move(piece));
  }
  return dirty;
}

void Refcounts::PutBack(const Dirty& dirty) {
  std::lock_guard lock(mutex_);
  blocks_.PutBack(dirty.blocks);
  for (const TableCache::Piece& piece : dirty.table) {
    // The table may have moved since; then the header's new one holds these entries.
    if (FitsIn(piece.offset - table_offset_, kSector, table_.size() * 8))
      table_dirty_[(piece.offset - table_offset_) / kSector] = true;
  }
}

void Refcounts::Written(const Dirty& dirty) {
  std::lock_guard lock(mutex_);
  blocks_.Written(dirty.blocks);
}

}  // namespace platter::qcow2
