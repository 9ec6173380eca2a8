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
constexpr uint32_t kMinClusterBits = 9, kMaxClusterBits = 21, kMinExtendedL2Bits = 14;
constexpr uint64_t kMaxL1Bytes = 32 * kMiB, kMaxRefcountTableBytes = 8 * kMiB;
constexpr uint32_t kMaxSnapshots = 65536, kMaxBitmaps = 65535, kMaxBitmapName = 1023;
constexpr uint64_t kMaxSnapshotTableBytes = 64 * kMiB, kMaxBitmapDirectoryBytes = 64 * kMiB;
constexpr uint32_t kMaxBackingName = 1023, kMaxBackingFormat = 15;
constexpr uint64_t kMaxCryptoHeaderBytes = 32 * kMiB;
constexpr uint64_t kMaxBitmapBytes = 512 * kMiB;  // of one bitmap's data
constexpr uint8_t kMinGranularityBits = 9, kMaxGranularityBits = 31;
constexpr uint64_t kSector = 512;                 // bytes: what a disk writes whole
constexpr uint32_t kMaxHeaderBytes = 2 * kMiB;    // header, extensions and names end in one cluster

struct UnknownExtension {
  uint32_t type;
  std::vector<std::byte> data;
  friend bool operator==(const UnknownExtension&, const UnknownExtension&) = default;
};

// The header with its extensions, as host values. BuildHeader writes it back, unknown extensions
// and unknown header fields kept; what ParseHeader accepts it accepts again, unchanged.
struct Header {
  uint32_t version = 3;
  uint32_t cluster_bits = 16;
  uint64_t size = 0;
  CryptMethod crypt_method = kCryptNone;
  uint32_t l1_size = 0;  // entries; at least what `size` needs, 0 only for an empty disk
  uint64_t l1_offset = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;  // 0 (damage) can be read and repaired, not written
  uint32_t snapshot_count = 0;
  uint64_t snapshots_offset = 0;
  // As on disk, unknown compatible and autoclear bits included: a writer clears the latter
  // (autoclear &= kKnownAutoclear) before anything else. All zero in version 2.
  uint64_t incompatible = 0, compatible = 0, autoclear = 0;
  uint32_t refcount_order = 4;
  CompressionType compression = kCompressionDeflate;
  // Of the header, from the byte after compression_type on, trailing zeros dropped (zero and absent
  // mean the same).
  std::vector<std::byte> unknown_fields;

  bool has_backing = false;
  std::string backing_name, backing_format;
  std::optional<std::string> data_file_name;
  struct Crypto {
    uint64_t offset, length;
    friend bool operator==(const Crypto&, const Crypto&) = default;
  };
  std::optional<Crypto> crypto;  // set if and only if crypt_method is kCryptLuks
  struct Bitmaps {
    uint32_t count;
    uint64_t directory_size, directory_offset;
    friend bool operator==(const Bitmaps&, const Bitmaps&) = default;
  };
  // Set only where the autoclear bit says that they are consistent, and the other way round.
  std::optional<Bitmaps> bitmaps;
  // The extension was there without its bit: a program that knows no bitmaps has written to the
  // image. Not looked at and not written back; the clusters of its bitmaps are leaks.
  bool stale_bitmaps = false;
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
  uint64_t refcount_table_entries() const {
    return (uint64_t{refcount_table_clusters} << cluster_bits) / 8;
  }
  // L1 entries that `bytes` of guest need.
  uint64_t l1_entries_for(uint64_t bytes) const { return DivideUp(bytes, l2_span()); }

  friend bool operator==(const Header&, const Header&) = default;
};

// `head` is the first cluster, or what there is of it (at least 72 bytes; ask for
// min(file size, kMaxHeaderBytes) or use HeaderBytesNeeded). kUnsupported for unknown incompatible
// bits (named by the feature name table where it has them, made printable), versions, ciphers and
// compression types; kCorrupt for the rest.
Result<Header> ParseHeader(ConstBytes head);

// From the first 32 bytes: how many bytes ParseHeader wants at most (one cluster).
Result<uint64_t> HeaderBytesNeeded(ConstBytes first32);

// kCorrupt if the tables that the header names overlap one another. Reading such an image is
// defined (each table is looked at alone), writing it destroys it: a writer asks at open.
Result<> CheckLayout(const Header& header);

// The first cluster's bytes for `header` (cluster_size() long, zero-padded): header, extensions,
// feature name table, backing name. kOutOfRange if it does not fit.
Result<std::vector<std::byte>> BuildHeader(const Header& header);

// As BuildHeader without the feature name table, so that all of it is in the first sector, which a
// disk writes whole or not at all. With `name_at` the backing name is not part of it and lies
// there.
Result<std::vector<std::byte>> BuildFirstSector(const Header& header,
                                                std::optional<uint64_t> name_at);

// Where the backing name is that the header in `head` names; empty: nowhere.
Result<Range> NamePlace(ConstBytes head);

// Where behind the first sector `length` bytes can be written that nothing which the header in
// `head` (the first cluster, or what there is of it) says lies in. kNoSpace.
Result<uint64_t> FindRoomForName(ConstBytes head, uint64_t length);

// L2 entries, decoded.
struct L2Entry {
  uint64_t descriptor = 0;  // the first 64 bits, as on disk
  uint64_t bitmap = 0;      // the second 64 bits with extended L2, else 0
};
enum class ClusterKind : uint8_t {
  kUnallocated,
  kZeroPlain,
  kZeroAllocated,
  kNormal,
  kCompressedUnit
};
struct Cluster {
  ClusterKind kind = ClusterKind::kUnallocated;
  // Refcount is exactly one: may be overwritten. Never set without a host cluster, nor for a
  // compressed unit, whatever the entry says.
  bool copied = false;
  uint64_t host = 0;    // kNormal, kZeroAllocated: cluster; kCompressedUnit: first byte
  uint64_t length = 0;  // kCompressedUnit: bytes up to the end of its last sector
  // Extended L2, not compressed: bit i for subcluster i; never both; neither: ask the parent. Then
  // kZeroPlain and kZeroAllocated say that all 32 are zero, kNormal that there is a host cluster
  // (maybe with nothing allocated in it), kUnallocated that there is none (some may be zero).
  // Without extended L2 all ones or none.
  uint32_t allocated = 0, zero = 0;
};
// kCorrupt for reserved bits, misalignment, compressed entries with a data file, contradicting
// subcluster bits, and with a data file a host offset that is not the guest offset. `guest`:
// offset of the cluster on the disk.
Result<Cluster> DecodeL2(const Header& header, L2Entry entry, uint64_t guest);
// The entry for a compressed unit of `length` bytes at `host` (any alignment); the caller has asked
// that host + length <= CompressedHostLimit and that 0 < length <= cluster_size().
L2Entry EncodeCompressed(const Header& header, uint64_t host, uint32_t length);
// The largest host offset + 1 that a compressed descriptor can name.
uint64_t CompressedHostLimit(const Header& header);

// The L2 table that an L1 entry names, 0 for none. kCorrupt for reserved bits or misalignment.
Result<uint64_t> DecodeL1(const Header& header, uint64_t entry, uint64_t index);

struct Snapshot {
  SnapshotInfo info;  // disk_size is what l1_size maps at most, and the disk's where not recorded
  uint64_t l1_offset = 0;
  uint32_t l1_size = 0;          // entries
  std::vector<std::byte> extra;  // as on disk, kept on rewrite
};
// `table` starts at snapshots_offset and may be longer than the table. kCorrupt if it ends early.
// `bytes_used` (may be null) gets the table's length. An entry that is whole but names what cannot
// be is an error too, or with `bad` left out and told there.
Result<std::vector<Snapshot>> ParseSnapshots(const Header& header, ConstBytes table,
                                             uint64_t* bytes_used,
                                             std::vector<Error>* bad = nullptr);
// The table that ParseSnapshots reads as `snapshots`.
std::vector<std::byte> BuildSnapshots(const std::vector<Snapshot>& snapshots);
// The extra data of a new snapshot in an image of version 3, without VM state.
std::vector<std::byte> SnapshotExtra(uint64_t disk_size);

struct Bitmap {
  BitmapInfo info;
  uint64_t at = 0;  // bytes from the start of the directory: of its entry
  uint64_t table_offset = 0;
  uint32_t table_size = 0;  // entries
  uint32_t flags = 0;
  uint8_t granularity_bits = 0;
  std::vector<std::byte> extra;
};
// `directory` starts at directory_offset and has at least directory_size bytes. kCorrupt also where
// a bitmap that is not in use is too small for the disk; kUnsupported for types and granularities
// that are not ours. Empty without header.bitmaps. `bad` as for ParseSnapshots.
Result<std::vector<Bitmap>> ParseBitmaps(const Header& header, ConstBytes directory,
                                         std::vector<Error>* bad = nullptr);
// The directory that ParseBitmaps reads as `bitmaps`; sets where in it each one's entry is.
std::vector<std::byte> BuildBitmaps(std::vector<Bitmap>& bitmaps);

// Refcount `index` of a block, any width from 1 to 64 bits ("Host cluster management").
uint64_t LoadRefcount(ConstBytes block, uint32_t order, uint64_t index);
void StoreRefcount(Bytes block, uint32_t order, uint64_t index, uint64_t value);

}  // namespace platter::qcow2
