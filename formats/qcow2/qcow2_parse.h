// From bytes to checked values and back; no I/O. The fuzz target of this folder.
//
// Nothing downstream reads a raw field again. What a parser here accepts is consistent in itself
// (aligned, inside the limits below, no wrapping sums); whether an offset lies inside the file is
// asked where it is followed, because a growing image may be ahead of us.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "formats/qcow2/qcow2_disk.h"
#include "io/info.h"
#include "io/layer.h"

namespace platter::qcow2 {

// Limits, as QEMU has them: what passes them is refused by name.
constexpr uint32_t kMinClusterBits = 9, kMaxClusterBits = 21;
constexpr uint64_t kMaxL1Bytes = 32 * kMiB, kMaxRefcountTableBytes = 8 * kMiB;
constexpr uint32_t kMaxSnapshots = 65536, kMaxBitmaps = 65535;
constexpr uint64_t kMaxSnapshotTableBytes = 64 * kMiB, kMaxBitmapDirectoryBytes = 64 * kMiB;
constexpr uint32_t kMaxBackingName = 1023;
constexpr uint32_t kMaxHeaderBytes = 2 * kMiB;  // header, extensions and names end in one cluster

struct UnknownExtension {
  uint32_t type;
  std::vector<std::byte> data;
};

// The header with its extensions, as host values. BuildHeader writes it back, unknown extensions
// and unknown header fields kept.
struct Header {
  uint32_t version = 3;
  uint32_t cluster_bits = 16;
  uint64_t size = 0;
  CryptMethod crypt_method = kCryptNone;
  uint32_t l1_size = 0;  // entries
  uint64_t l1_offset = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t snapshot_count = 0;
  uint64_t snapshots_offset = 0;
  uint64_t incompatible = 0, compatible = 0, autoclear = 0;
  uint32_t refcount_order = 4;
  CompressionType compression = kCompressionDeflate;
  std::vector<std::byte> unknown_fields;  // of the header, past what DiskHeader knows

  bool has_backing = false;
  std::string backing_name, backing_format;
  std::optional<std::string> data_file_name;
  struct Crypto {
    uint64_t offset, length;
  };
  std::optional<Crypto> crypto;
  struct Bitmaps {
    uint32_t count;
    uint64_t directory_size, directory_offset;
  };
  std::optional<Bitmaps> bitmaps;
  std::vector<UnknownExtension> unknown_extensions;

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  bool extended_l2() const { return incompatible & kExtendedL2; }
  bool has_data_file() const { return incompatible & kDataFile; }
  bool data_file_raw() const { return has_data_file() && (autoclear & kDataFileRaw); }
  uint32_t l2_entry_size() const { return extended_l2() ? 16 : 8; }
  uint64_t l2_entries() const { return cluster_size() / l2_entry_size(); }
  // Guest bytes that one L2 table maps.
  uint64_t l2_span() const { return l2_entries() << cluster_bits; }
  uint32_t subclusters() const { return extended_l2() ? 32 : 1; }
  uint64_t subcluster_size() const { return cluster_size() / subclusters(); }
  uint32_t refcount_bits() const { return 1u << refcount_order; }
  uint64_t refcount_max() const;
  uint64_t refcounts_per_block() const { return cluster_size() * 8 / refcount_bits(); }
  uint64_t refcount_table_entries() const { return (uint64_t{refcount_table_clusters} << cluster_bits) / 8; }
  // L1 entries that `bytes` of guest need.
  uint64_t l1_entries_for(uint64_t bytes) const { return DivideUp(bytes, l2_span()); }
};

// `head` is the first cluster, or what there is of it (at least 72 bytes; ask for
// min(file size, kMaxHeaderBytes) or use HeaderBytesNeeded). kUnsupported for unknown incompatible
// bits (named by the feature name table where it has them, made printable), versions, ciphers and
// compression types; kCorrupt for the rest.
Result<Header> ParseHeader(ConstBytes head);

// From the first 32 bytes: how many bytes ParseHeader wants at most (one cluster).
Result<uint64_t> HeaderBytesNeeded(ConstBytes first32);

// The first cluster's bytes for `header` (cluster_size() long, zero-padded): header, extensions,
// feature name table, backing name. kOutOfRange if it does not fit.
Result<std::vector<std::byte>> BuildHeader(const Header& header);

// L2 entries, decoded.
struct L2Entry {
  uint64_t descriptor = 0;  // the first 64 bits, as on disk
  uint64_t bitmap = 0;      // the second 64 bits with extended L2, else 0
};
enum class ClusterKind : uint8_t { kUnallocated, kZeroPlain, kZeroAllocated, kNormal, kCompressedUnit };
struct Cluster {
  ClusterKind kind = ClusterKind::kUnallocated;
  bool copied = false;    // refcount is exactly one: may be overwritten
  uint64_t host = 0;      // kNormal, kZeroAllocated: cluster; kCompressedUnit: first byte
  uint64_t length = 0;    // kCompressedUnit: bytes up to the end of its last sector
  // Extended L2, not compressed: bit i for subcluster i. Without extended L2 all or nothing.
  uint32_t allocated = 0, zero = 0;
};
// kCorrupt for reserved bits, misalignment, compressed entries with a data file, contradicting
// subcluster bits. `index` is for the message: guest offset of the cluster.
Result<Cluster> DecodeL2(const Header& header, L2Entry entry, uint64_t guest);
L2Entry EncodeCompressed(const Header& header, uint64_t host, uint32_t length);  // fits: see below
// The largest host offset + 1 that a compressed descriptor can name.
uint64_t CompressedHostLimit(const Header& header);

// The L2 table that an L1 entry names, 0 for none. kCorrupt for reserved bits or misalignment.
Result<uint64_t> DecodeL1(const Header& header, uint64_t entry, uint64_t index);

struct Snapshot {
  SnapshotInfo info;
  uint64_t l1_offset = 0;
  uint32_t l1_size = 0;  // entries
  std::vector<std::byte> extra;  // as on disk, kept on rewrite
};
// `table` starts at snapshots_offset and may be longer than the table. kCorrupt if it ends early.
// `bytes_used` (may be null) gets the table's length.
Result<std::vector<Snapshot>> ParseSnapshots(const Header& header, ConstBytes table,
                                             uint64_t* bytes_used);

struct Bitmap {
  BitmapInfo info;
  uint64_t table_offset = 0;
  uint32_t table_size = 0;  // entries
  uint32_t flags = 0;
  uint8_t granularity_bits = 0;
  std::vector<std::byte> extra;
};
Result<std::vector<Bitmap>> ParseBitmaps(const Header& header, ConstBytes directory);

// Refcount `index` of a block, any width from 1 to 64 bits ("Host cluster management").
uint64_t LoadRefcount(ConstBytes block, uint32_t order, uint64_t index);
void StoreRefcount(Bytes block, uint32_t order, uint64_t index, uint64_t value);

}  // namespace platter::qcow2
