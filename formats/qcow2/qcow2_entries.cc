#include "formats/qcow2/qcow2_entries.h"

#include <algorithm>

#include "base/check.h"
#include "base/endian.h"
#include "base/math.h"

namespace platter::qcow2 {

Result<> EntryTable::Load(Store& store, std::string_view what, uint64_t offset, uint64_t count) {
  offset_ = offset;
  dirty_.clear();
  entries_.clear();
  if (count == 0) return {};
  // Asked first, so that a table that is not there costs no memory.
  uint64_t end = TRY(store.Size());
  if (!FitsIn(offset, count * 8, end)) {
    return Fail(Code::kCorrupt, "{} ({} entries at {:#x}) reaches past the end of the file ({:#x})",
                what, count, offset, end);
  }
  entries_.resize(count);
  TRY_AS(what, store.Read(offset, std::as_writable_bytes(std::span(entries_))));
  for (uint64_t& entry : entries_) {
    be64 disk;
    std::memcpy(static_cast<void*>(&disk), &entry, sizeof disk);
    entry = disk;
  }
  return {};
}

void EntryTable::Set(uint64_t index, uint64_t value) {
  CHECK(index < entries_.size());
  if (entries_[index] == value) return;
  entries_[index] = value;
  dirty_.insert(index / kPerSector);
}

void EntryTable::MoveTo(uint64_t offset, uint64_t count) {
  CHECK(count >= entries_.size());
  offset_ = offset;
  entries_.resize(count);
  for (uint64_t sector = 0; sector < DivideUp(count, kPerSector); ++sector) dirty_.insert(sector);
}

void EntryTable::EncodeSector(uint64_t sector, std::vector<std::byte>& into) const {
  size_t at = into.size();
  into.resize(at + kSector);
  uint64_t end = std::min<uint64_t>((sector + 1) * kPerSector, entries_.size());
  for (uint64_t i = sector * kPerSector; i < end; ++i, at += 8) {
    StoreAt<be64>(into, at, entries_[i]);
  }
}

std::vector<EntryTable::Piece> EntryTable::Take() {
  std::vector<Piece> pieces;
  for (uint64_t sector : dirty_) {
    uint64_t at = offset_ + sector * kSector;
    if (pieces.empty() || pieces.back().offset + pieces.back().bytes.size() != at) {
      pieces.push_back(Piece{at, {}});
    }
    EncodeSector(sector, pieces.back().bytes);
  }
  dirty_.clear();
  return pieces;
}

void EntryTable::PutBack(const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces) {
    // Of a table that has moved since: the whole new one is dirty anyway.
    if (piece.offset < offset_) continue;
    uint64_t first = (piece.offset - offset_) / kSector, count = piece.bytes.size() / kSector;
    for (uint64_t sector = first; sector < first + count; ++sector) {
      if (sector * kPerSector < entries_.size()) dirty_.insert(sector);
    }
  }
}

std::vector<std::byte> EntryTable::Encode() const {
  std::vector<std::byte> bytes;
  bytes.reserve(RoundUp(entries_.size() * 8, kSector));
  for (uint64_t sector = 0; sector < DivideUp(entries_.size(), kPerSector); ++sector) {
    EncodeSector(sector, bytes);
  }
  return bytes;
}

}  // namespace platter::qcow2
