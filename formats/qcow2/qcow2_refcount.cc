#include "formats/qcow2/qcow2_refcount.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace platter::qcow2 {

namespace {
constexpr uint64_t kSliceBytes = 64 * kKiB;
constexpr size_t kCacheBytes = 8 * kMiB;
}  // namespace

Refcounts::Refcounts(Store& file, const Header& header)
    : file_(file),
      header_(header),
      per_block_(header.refcounts_per_block()),
      max_(header.refcount_max()),
      slice_bytes_(static_cast<uint32_t>(std::min(header.cluster_size(), kSliceBytes))),
      per_slice_(uint64_t{slice_bytes_} * 8 / header.refcount_bits()),
      blocks_(file, "refcount block", slice_bytes_, kCacheBytes) {}

Result<> Refcounts::Load() {
  return table_.Load(file_, "refcount table", header_.refcount_table_offset,
                     header_.refcount_table_entries());
}

Result<uint64_t> Refcounts::Block(uint64_t cluster) const {
  uint64_t index = cluster / per_block_;
  if (index >= table_.size()) return uint64_t{0};
  uint64_t entry = table_[index];
  if ((entry & ~kRefcountOffsetMask) || !IsAligned(entry, header_.cluster_size())) {
    return Fail(Code::kCorrupt, "refcount table entry {} ({:#x}) is not aligned to clusters", index,
                entry);
  }
  return entry;
}

Refcounts::Place Refcounts::Locate(uint64_t block, uint64_t cluster) const {
  uint64_t in_block = cluster % per_block_, index = in_block % per_slice_;
  return {block + in_block / per_slice_ * slice_bytes_, index, per_slice_ - index};
}

Result<uint64_t> Refcounts::Get(uint64_t cluster) {
  uint64_t block = TRY(Block(cluster));
  if (block == 0) return uint64_t{0};
  Place place = Locate(block, cluster);
  auto slice = TRY(blocks_.Get(place.slice));
  return LoadRefcount(slice.bytes(), header_.refcount_order, place.index);
}

Result<> Refcounts::Fill(Clusters run, uint64_t value) {
  CHECK(value <= max_);
  for (uint64_t at = run.first; at < run.end();) {
    uint64_t block = TRY(Block(at));
    CHECK(block != 0);
    Place place = Locate(block, at);
    uint64_t count = std::min(place.left, run.end() - at);
    auto slice = TRY(blocks_.Get(place.slice));
    const uint64_t bits = header_.refcount_bits();
    Range part = Range::FromTo(place.index * bits / 8, DivideUp((place.index + count) * bits, 8));
    Bytes bytes = slice.Edit(part);
    // Narrow refcounts share bytes with neighbours: number them inside the edited part.
    uint64_t skipped = part.offset * 8 / bits;
    for (uint64_t i = 0; i < count; ++i) {
      StoreRefcount(bytes, header_.refcount_order, place.index - skipped + i, value);
    }
    at += count;
  }
  return {};
}

Result<Clusters> Refcounts::FindFree(uint64_t from, uint64_t to, uint64_t& next) {
  uint64_t block = TRY(Block(from));
  if (block == 0) {
    next = std::min(to, RoundDown(from, per_block_) + per_block_);
    return Clusters{.first = from, .count = 0};
  }
  Place place = Locate(block, from);
  auto slice = TRY(blocks_.Get(place.slice));
  uint64_t count = std::min(place.left, to - from), i = 0;
  auto used = [&](uint64_t at) {
    return LoadRefcount(slice.bytes(), header_.refcount_order, place.index + at) != 0;
  };
  while (i < count && used(i)) ++i;
  uint64_t first = i;
  while (i < count && !used(i)) ++i;
  next = from + i;
  return Clusters{.first = from + first, .count = i - first};
}

void Refcounts::AddBlock(uint64_t cluster, uint64_t at) {
  uint64_t offset = at << header_.cluster_bits;
  for (uint64_t slice = 0; slice < header_.cluster_size(); slice += slice_bytes_) {
    blocks_.Fresh(offset + slice);
  }
  table_.Set(cluster / per_block_, offset);
}

void Refcounts::MoveTable(Clusters place) {
  table_.MoveTo(place.first << header_.cluster_bits,
                (place.count << header_.cluster_bits) / sizeof(uint64_t));
  moved_ = true;
}

Refcounts::Batch Refcounts::Take() {
  Batch batch;
  batch.blocks = blocks_.TakeDirty();
  batch.table = table_.Take();
  batch.moved = std::exchange(moved_, false);
  batch.table_offset = table_.offset();
  batch.table_clusters = static_cast<uint32_t>(table_.size() * 8 >> header_.cluster_bits);
  return batch;
}

void Refcounts::PutBack(const Batch& batch) {
  blocks_.PutBack(batch.blocks);
  table_.PutBack(batch.table);
  moved_ = moved_ || batch.moved;
}

void Refcounts::Written(const Batch& batch) { blocks_.Written(batch.blocks); }

}  // namespace platter::qcow2
