// What is written of a new image in pieces, so that no table need be in memory whole: shared by
// create, which writes to places, and stream, which only goes on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "formats/qcow2/qcow2_parse.h"

namespace platter::qcow2 {

// Calls fill(offset, zeroed bytes) and then write(offset, bytes) for each piece of `length` bytes.
template <class Write, class Fill>
Result<> InPieces(uint64_t length, Write write, Fill fill) {
  constexpr uint64_t kPiece = kMiB;  // bytes
  std::vector<std::byte> piece(std::min(length, kPiece));
  for (uint64_t at = 0; at < length; at += kPiece) {
    Bytes bytes = Bytes(piece).first(std::min(kPiece, length - at));
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    fill(at, bytes);
    TRY(write(at, ConstBytes(bytes)));
  }
  return {};
}

// `piece`, which starts `at` bytes into a table of 64-bit values, holds value(i) for i < count and
// zeros after them.
template <class Value>
void FillTable(uint64_t at, Bytes piece, uint64_t count, Value value) {
  for (uint64_t i = 0; i < piece.size() / 8 && at / 8 + i < count; ++i) {
    StoreAt(piece, i * 8, be64(value(at / 8 + i)));
  }
}

// The same of refcount blocks in a row that count the first `clusters` once.
inline void FillRefcounts(const Header& header, uint64_t at, Bytes piece, uint64_t clusters) {
  const uint64_t bits = header.refcount_bits(), first = at * 8 / bits;
  if (first >= clusters) return;
  const uint64_t count = std::min<uint64_t>(piece.size() * 8 / bits, clusters - first);
  for (uint64_t i = 0; i < count; ++i) StoreRefcount(piece, header.refcount_order, i, 1);
}

}  // namespace platter::qcow2
