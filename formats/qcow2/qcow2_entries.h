// EntryTable: a table of 64-bit entries that is kept whole in memory and written back by sector:
// the L1 table and the refcount table.
#pragma once

#include <cstdint>
#include <set>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/store.h"

namespace platter::qcow2 {

// Not thread-safe: the owner's lock guards it. Writing back follows TableCache: Take copies what is
// dirty, PutBack marks it dirty again after a failure.
class EntryTable {
 public:
  // Whole 512-byte sectors to be written at `offset` of the store.
  struct Piece {
    uint64_t offset;
    std::vector<std::byte> bytes;
  };

  // Reads `count` entries at `offset`. kCorrupt, naming `what`, if they reach past the end.
  Result<> Load(Store& store, std::string_view what, uint64_t offset, uint64_t count);

  uint64_t offset() const { return offset_; }
  uint64_t size() const { return entries_.size(); }  // entries
  uint64_t operator[](uint64_t index) const { return entries_[index]; }

  void Set(uint64_t index, uint64_t value);

  // The table gets another place and at least as many entries; all of it is dirty.
  void MoveTo(uint64_t offset, uint64_t count);

  bool dirty() const { return !dirty_.empty(); }
  std::vector<Piece> Take();
  void PutBack(const std::vector<Piece>& pieces);

  // All bytes, in the order of the disk, padded to whole sectors.
  std::vector<std::byte> Encode() const;

 private:
  static constexpr uint64_t kSector = 512, kPerSector = kSector / 8;

  void EncodeSector(uint64_t sector, std::vector<std::byte>& into) const;

  uint64_t offset_ = 0;
  std::vector<uint64_t> entries_;
  std::set<uint64_t> dirty_;  // sectors
};

}  // namespace platter::qcow2
