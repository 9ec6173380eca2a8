// From headers to checked values: spans in, no I/O.
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "formats/vmdk/vmdk_disk.h"

namespace platter::vmdk {

enum class SparseKind : uint8_t { kHosted, kCowd, kSe };

// Of a sparse extent's file, in bytes.
struct SparseGeometry {
  SparseKind kind = SparseKind::kHosted;
  uint32_t version = 1;
  uint32_t flags = 0;  // SparseFlags; 0 for other kinds
  bool unclean = false;
  uint64_t capacity = 0;       // bytes of guest; whole sectors
  uint64_t grain = 0;          // bytes
  uint32_t table_entries = 0;  // in a grain table
  uint64_t directory_entries = 0;
  uint64_t directory = 0;                        // where the grain directory is
  std::optional<uint64_t> redundant;             // and the second one
  bool at_end = false;                           // the footer has to be read instead of this
  Range descriptor;                              // of an embedded one; empty: none
  uint64_t overhead = 0;                         // bytes before the first grain, as recorded
  uint64_t se_tables = 0, se_tables_length = 0;  // kSe: grain tables are numbered from here
  uint64_t se_grains = 0;                        // kSe: and grains from here

  uint32_t entry_size() const { return kind == SparseKind::kSe ? 8 : 4; }
  uint32_t table_bytes() const { return table_entries * entry_size(); }
  uint64_t table_span() const { return grain * table_entries; }  // bytes of guest
  bool compressed() const { return flags & kCompressed; }
  bool markers() const { return flags & kMarkers; }
};

// Which kind of sparse extent `head` begins, if it does.
std::optional<SparseKind> SparseKindOf(ConstBytes head);

// The header of a sparse extent of any kind, from its first sector (COWD: 32 bytes are enough).
// kCorrupt or kUnsupported, naming the field.
Result<SparseGeometry> ParseSparse(ConstBytes head);

// The last three sectors of a stream: footer marker, footer, end-of-stream marker. The geometry
// that replaces `header`.
Result<SparseGeometry> ParseFooter(const SparseGeometry& header, ConstBytes tail);

// The other header of a seSparse extent: kUnsupported where the journal has to be replayed first.
Result<> ParseSeVolatile(ConstBytes sector);

// What an entry of a grain table says.
struct Grain {
  enum Kind : uint8_t { kHole, kZero, kData } kind = kHole;
  uint64_t host = 0;  // kData: bytes
  friend bool operator==(const Grain&, const Grain&) = default;
};
Result<Grain> DecodeGrain(const SparseGeometry& geometry, uint64_t entry);

// Where the table is that an entry of the grain directory names: bytes; 0: none.
Result<uint64_t> DecodeTable(const SparseGeometry& geometry, uint64_t entry);

// An entry of a table or directory; the caller knows that it is inside `table`.
uint64_t LoadEntry(const SparseGeometry& geometry, ConstBytes table, uint64_t index);

}  // namespace platter::vmdk
