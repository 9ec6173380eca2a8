// A sparse extent that becomes larger or smaller: what goes before the header, and the header.
//
//   growing    entries past the old end cleared, flush; longer directories, with a table for each
//              entry, Sync; header, Sync
//   shrinking  (the layer has dropped the grains past the new end) header, Sync
//
// Entries that fit the last sector of the directories stay there; else the directories move to the
// end of the file. All new tables are there from the start, as in a new image: QEMU does not make
// tables that are missing, and writes over the header instead.
#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

#include "base/endian.h"
#include "formats/vmdk/vmdk_sparse.h"

namespace platter::vmdk {

namespace {
constexpr uint64_t kHostLimit = kSector << 32;  // what entries can name: 2 TiB
constexpr uint64_t kPiece = 64 * kKiB;          // bytes of a directory, at once
}  // namespace

Result<SparseGeometry> SparseExtent::Extend(uint64_t end, uint64_t capacity) {
  TRY(ClearFrom(end));
  SparseGeometry next = geometry_;
  next.capacity = capacity;
  next.directory_entries = DivideUp(capacity, geometry_.table_span());
  if (next.directory_entries > geometry_.directory_entries) {
    TRY(ExtendDirectories(next));
    TRY(file_.Sync());
  }
  return next;
}

// Whatever a table or a grain holds past the end of the disk reads as zeros.
Result<> SparseExtent::ClearFrom(uint64_t end) {
  const SparseGeometry& g = geometry_;
  if (IsAligned(end, g.table_span())) return {};
  auto tables = TRY(FindTables(end / g.table_span()));
  if (!tables) return {};
  std::vector<Update> updates;
  {
    std::lock_guard lock(mutex_);
    for (uint64_t i = DivideUp(end % g.table_span(), g.grain); i < g.table_entries; ++i) {
      if (LoadEntry(g, tables->first.bytes(), i) != 0) updates.push_back({i, 0});
    }
  }
  Write(*tables, updates);
  const uint64_t inside = end % g.grain;
  if (inside > 0) {
    const Grain last = TRY(Read(*tables, {end - 1, 1}))[0];
    if (last.kind == Grain::kData) {
      TRY(file_.Zero({last.host + inside, g.grain - inside}, /*may_unmap=*/false));
    }
  }
  return Flush();
}

// Both directories, as `next` is to have them, with new tables. `next` gets their places.
Result<> SparseExtent::ExtendDirectories(SparseGeometry& next) {
  const uint64_t old_bytes = geometry_.directory_entries * sizeof(le32);
  const uint64_t new_bytes = next.directory_entries * sizeof(le32);
  const bool move = RoundUp(new_bytes, kSector) > RoundUp(old_bytes, kSector);
  const uint64_t table = RoundUp(geometry_.table_bytes(), kSector);
  const uint64_t tables = (next.directory_entries - geometry_.directory_entries) * table;
  const uint64_t directory = move ? RoundUp(new_bytes, kSector) : 0;
  const uint64_t place =
      TRY(TakeEnd((directory + tables) * (geometry_.redundant.has_value() ? 2 : 1)));
  auto extend = [&](uint64_t from, uint64_t to, uint64_t first_table) -> Result<> {
    std::vector<std::byte> piece;
    for (uint64_t at = move ? 0 : old_bytes; at < new_bytes; at += piece.size()) {
      piece.assign(std::min(kPiece, new_bytes - at), std::byte{0});
      const uint64_t have = at < old_bytes ? std::min(old_bytes - at, piece.size()) : 0;
      if (have > 0) TRY(file_.Read(from + at, Bytes(piece).first(have)));
      for (uint64_t i = have; i < piece.size(); i += sizeof(le32)) {
        const uint64_t number = (at + i - old_bytes) / sizeof(le32);
        StoreAt(Bytes(piece), i,
                le32(static_cast<uint32_t>((first_table + number * table) / kSector)));
      }
      TRY(file_.Write(to + at, ConstBytes(piece)));
    }
    if (!move) directory_.Forget(from + RoundDown(old_bytes, kSector));
    return {};
  };
  next.directory = move ? place : geometry_.directory;
  TRY_AS("grain directory", extend(geometry_.directory, next.directory, place + directory));
  if (!geometry_.redundant) return {};
  const uint64_t second = place + directory + tables;
  next.redundant = move ? second : *geometry_.redundant;
  return extend(*geometry_.redundant, *next.redundant, second + directory)
      .WithPrefix("redundant grain directory");
}

// `length` bytes of zeros behind all that is there.
Result<uint64_t> SparseExtent::TakeEnd(uint64_t length) {
  std::lock_guard lock(mutex_);
  const uint64_t place = next_;
  if (place + length > kHostLimit) {
    return Fail(Code::kNoSpace, "the extent would be larger than 2 TiB");
  }
  TRY(GrowLocked(place + length));
  next_ = used_end_ = place + length;
  return place;
}

Result<> SparseExtent::GiveBackEnd(Range taken) {
  TRY(file_.Zero(taken, /*may_unmap=*/true));
  std::lock_guard lock(mutex_);
  if (next_ == taken.end()) next_ = used_end_ = taken.offset;
  return {};
}

Result<> SparseExtent::Adopt(const SparseGeometry& next) {
  std::array<std::byte, kSector> bytes{};
  TRY_AS("header", file_.Read(0, Bytes(bytes)));
  auto header = *LoadAt<SparseHeader>(bytes, 0);
  header.capacity = next.capacity / kSector;
  header.gd_offset = next.directory / kSector;
  if (next.redundant) header.rgd_offset = *next.redundant / kSector;
  header.descriptor_offset = next.descriptor.offset / kSector;
  TRY(file_.Sync());
  TRY_AS("header", file_.Write(0, AsBytes(header)));
  TRY(file_.Sync());
  geometry_ = next;
  return {};
}

}  // namespace platter::vmdk
