// Tables of the image: L1 and L2 entries, snapshots, bitmap directory, refcounts. The header is in
// qcow2_header.cc.
#include "formats/qcow2/qcow2_parse.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "base/check.h"

namespace platter::qcow2 {
namespace {

constexpr uint64_t kMaxOffset = uint64_t{1} << 63;
constexpr uint64_t kCompressedBits = (uint64_t{1} << 62) - 1;  // descriptor of a compressed cluster
constexpr uint64_t kHostBits = 56;                             // no entry may name bytes past 2^56
constexpr uint32_t kAllSubclusters = ~uint32_t{0};

// Where the sector count of a compressed descriptor starts.
uint32_t CompressedShift(const Header& header) { return 62 - (header.cluster_bits - 8); }

Result<Cluster> DecodeCompressed(const Header& header, L2Entry entry, uint64_t guest) {
  if (header.has_data_file()) {
    return Fail(Code::kCorrupt,
                "L2 entry {:#x} of guest offset {:#x}: compressed, with an external data file",
                entry.descriptor, guest);
  }
  if (entry.bitmap != 0) {
    return Fail(Code::kCorrupt,
                "L2 entry {:#x} of guest offset {:#x}: compressed, with a subcluster bitmap {:#x}",
                entry.descriptor, guest, entry.bitmap);
  }
  uint32_t shift = CompressedShift(header);
  uint64_t host = entry.descriptor & ((uint64_t{1} << shift) - 1);
  uint64_t sectors = ((entry.descriptor & kCompressedBits) >> shift) + 1;
  uint64_t length = sectors * 512 - host % 512;
  if (host >= CompressedHostLimit(header) || host < header.cluster_size()) {
    return Fail(
        Code::kCorrupt, "L2 entry {:#x} of guest offset {:#x}: compressed data at {:#x}, {}",
        entry.descriptor, guest, host,
        host < header.cluster_size() ? "inside the header" : "past what the format can name");
  }
  Cluster cluster;
  cluster.kind = ClusterKind::kCompressedUnit;
  cluster.host = host;
  cluster.length = length;
  return cluster;
}

// Kind and masks of a standard cluster with extended L2 entries.
Result<> DecodeSubclusters(L2Entry entry, uint64_t guest, bool has_host, Cluster& cluster) {
  cluster.allocated = static_cast<uint32_t>(entry.bitmap);
  cluster.zero = static_cast<uint32_t>(entry.bitmap >> 32);
  if (cluster.allocated & cluster.zero) {
    return Fail(Code::kCorrupt,
                "L2 entry of guest offset {:#x}: subclusters {:#x} both allocated and zero", guest,
                cluster.allocated & cluster.zero);
  }
  if (cluster.allocated && !has_host) {
    return Fail(Code::kCorrupt,
                "L2 entry of guest offset {:#x}: subclusters {:#x} allocated in no cluster", guest,
                cluster.allocated);
  }
  bool all_zero = cluster.zero == kAllSubclusters;
  cluster.kind = has_host   ? all_zero ? ClusterKind::kZeroAllocated : ClusterKind::kNormal
                 : all_zero ? ClusterKind::kZeroPlain
                            : ClusterKind::kUnallocated;
  return {};
}

}  // namespace

uint64_t CompressedHostLimit(const Header& header) {
  return uint64_t{1} << std::min<uint64_t>(CompressedShift(header), kHostBits);
}

L2Entry EncodeCompressed(const Header& header, uint64_t host, uint32_t length) {
  CHECK(length > 0 && length <= header.cluster_size());
  CHECK(FitsIn(host, length, CompressedHostLimit(header)));
  uint64_t additional = DivideUp(host % 512 + length, 512) - 1;
  return {kCompressed | additional << CompressedShift(header) | host, 0};
}

Result<Cluster> DecodeL2(const Header& header, L2Entry entry, uint64_t guest) {
  if (entry.descriptor & kCompressed) return DecodeCompressed(header, entry, guest);
  uint64_t reserved = kL2Reserved;
  // "With version 2 or with extended L2 entries, this is always 0."
  if (header.version < 3 || header.extended_l2()) reserved |= kZeroFlag;
  if (entry.descriptor & reserved) {
    return Fail(Code::kCorrupt, "L2 entry {:#x} of guest offset {:#x}: reserved bits {:#x} are set",
                entry.descriptor, guest, entry.descriptor & reserved);
  }
  uint64_t host = entry.descriptor & kOffsetMask;
  if (!IsAligned(host, header.cluster_size())) {
    return Fail(
        Code::kCorrupt,
        "L2 entry {:#x} of guest offset {:#x}: host offset {:#x} is not aligned to clusters",
        entry.descriptor, guest, host);
  }
  bool copied = entry.descriptor & kCopied;
  // Offset 0 is a place only in a data file, and only with the bit.
  bool has_host = host != 0 || (copied && header.has_data_file());
  if (has_host && header.has_data_file() && host != guest) {
    return Fail(Code::kCorrupt,
                "L2 entry {:#x} of guest offset {:#x}: names {:#x} of the external data file",
                entry.descriptor, guest, host);
  }
  Cluster cluster;
  cluster.host = host;
  cluster.copied = copied && has_host;
  if (header.extended_l2()) {
    TRY(DecodeSubclusters(entry, guest, has_host, cluster));
  } else if (entry.descriptor & kZeroFlag) {
    cluster.kind = has_host ? ClusterKind::kZeroAllocated : ClusterKind::kZeroPlain;
    cluster.zero = kAllSubclusters;
  } else if (has_host) {
    cluster.kind = ClusterKind::kNormal;
    cluster.allocated = kAllSubclusters;
  }
  return cluster;
}

Result<uint64_t> DecodeL1(const Header& header, uint64_t entry, uint64_t index) {
  if (entry & kL1Reserved) {
    return Fail(Code::kCorrupt, "L1 entry {} ({:#x}): reserved bits {:#x} are set", index, entry,
                entry & kL1Reserved);
  }
  uint64_t offset = entry & kOffsetMask;
  if (!IsAligned(offset, header.cluster_size())) {
    return Fail(Code::kCorrupt, "L1 entry {} ({:#x}): L2 table at {:#x} is not aligned to clusters",
                index, entry, offset);
  }
  return offset;
}

namespace {

// Takes fields off the front of a table of variable entries.
class Cursor {
 public:
  explicit Cursor(ConstBytes bytes) : bytes_(bytes) {}
  uint64_t at() const { return at_; }

  template <class T>
  std::optional<T> Load() {
    auto value = LoadAt<T>(bytes_, at_);
    if (value) at_ += sizeof(T);
    return value;
  }
  std::optional<ConstBytes> Take(uint64_t length) {
    if (!FitsIn(at_, length, bytes_.size())) return std::nullopt;
    at_ += length;
    return bytes_.subspan(at_ - length, length);
  }
  // The last entry's padding may lie past the end.
  void Align() { at_ = std::min<uint64_t>(RoundUp(at_, 8), bytes_.size()); }

 private:
  ConstBytes bytes_;
  uint64_t at_ = 0;
};

Result<> CheckSnapshot(const Header& header, const Snapshot& snapshot) {
  uint64_t bytes = uint64_t{snapshot.l1_size} * 8;
  if (bytes > kMaxL1Bytes) {
    return Fail(Code::kUnsupported, "an L1 table of {} entries (at most {})", snapshot.l1_size,
                kMaxL1Bytes / 8);
  }
  if (!IsAligned(snapshot.l1_offset, header.cluster_size()) ||
      !FitsIn(snapshot.l1_offset, bytes, kMaxOffset) || (bytes > 0 && snapshot.l1_offset == 0)) {
    return Fail(Code::kCorrupt, "L1 table at {:#x}", snapshot.l1_offset);
  }
  if (header.l1_entries_for(snapshot.info.disk_size) > snapshot.l1_size) {
    return Fail(Code::kCorrupt, "an L1 table of {} entries is too small for a disk of {} bytes",
                snapshot.l1_size, snapshot.info.disk_size);
  }
  return {};
}

// What the extra data says; where it is too short for a field, what that meant before the field
// was invented.
void ParseSnapshotExtra(const Header& header, const DiskSnapshot& disk, ConstBytes extra,
                        Snapshot& snapshot) {
  DiskSnapshotExtra fields;
  std::memset(static_cast<void*>(&fields), 0, sizeof fields);
  std::memcpy(&fields, extra.data(), std::min(extra.size(), sizeof fields));
  snapshot.info.vm_state_size =
      extra.size() >= 8 ? uint64_t{fields.vm_state_size} : uint64_t{disk.vm_state_size};
  if (extra.size() >= 16) {
    snapshot.info.disk_size = fields.disk_size;
  } else {
    // l1_size is at most 2^22 here and l2_span() at most 2^39.
    snapshot.info.disk_size = std::min(
        header.size, std::min<uint64_t>(snapshot.l1_size, kMaxL1Bytes / 8) * header.l2_span());
  }
  if (extra.size() >= 24 && fields.icount != ~uint64_t{0}) snapshot.info.icount = fields.icount;
}

std::unexpected<Error> CutShort(std::string_view table, size_t index) {
  return Fail(Code::kCorrupt, "{}: ends inside entry {}", table, index);
}

// Passes over what is wrong with an entry where the caller wants to hear of it.
Result<> Report(Error error, std::vector<Error>* bad) {
  if (!bad) return std::unexpected(std::move(error));
  bad->push_back(std::move(error));
  return {};
}

// The next entry, nothing if the table ends inside it.
std::optional<Snapshot> NextSnapshot(const Header& header, Cursor& cursor) {
  cursor.Align();
  auto disk = cursor.Load<DiskSnapshot>();
  if (!disk) return std::nullopt;
  auto extra = cursor.Take(disk->extra_size);
  if (!extra) return std::nullopt;
  auto id = cursor.Take(disk->id_length);
  if (!id) return std::nullopt;
  auto name = cursor.Take(disk->name_length);
  if (!name) return std::nullopt;

  Snapshot snapshot;
  snapshot.l1_offset = disk->l1_table_offset;
  snapshot.l1_size = disk->l1_size;
  snapshot.extra.assign(extra->begin(), extra->end());
  snapshot.info.id = std::string(AsText(*id));
  snapshot.info.name = std::string(AsText(*name));
  snapshot.info.date_seconds = disk->date_seconds;
  snapshot.info.date_nanoseconds = disk->date_nanoseconds;
  snapshot.info.vm_clock_nanoseconds = disk->vm_clock_nanoseconds;
  ParseSnapshotExtra(header, *disk, *extra, snapshot);
  return snapshot;
}

}  // namespace

Result<std::vector<Snapshot>> ParseSnapshots(const Header& header, ConstBytes table,
                                             uint64_t* bytes_used, std::vector<Error>* bad) {
  if (table.size() > kMaxSnapshotTableBytes) table = table.first(kMaxSnapshotTableBytes);
  Cursor cursor(table);
  std::vector<Snapshot> snapshots;
  for (uint32_t i = 0; i < header.snapshot_count; ++i) {
    auto snapshot = NextSnapshot(header, cursor);
    if (!snapshot) return CutShort("snapshot table", i);
    Result<> checked =
        CheckSnapshot(header, *snapshot)
            .WithPrefix(fmt::format("snapshot {} ('{}')", i, Printable(snapshot->info.name)));
    if (!checked) {
      TRY(Report(std::move(checked.error()), bad));
    } else {
      snapshots.push_back(std::move(*snapshot));
    }
  }
  if (bytes_used != nullptr) *bytes_used = RoundUp(cursor.at(), 8);
  return snapshots;
}

std::vector<std::byte> BuildSnapshots(const std::vector<Snapshot>& snapshots) {
  std::vector<std::byte> table;
  auto put = [&](ConstBytes bytes) { table.insert(table.end(), bytes.begin(), bytes.end()); };
  for (const Snapshot& snapshot : snapshots) {
    const SnapshotInfo& info = snapshot.info;
    DiskSnapshot disk{};
    disk.l1_table_offset = snapshot.l1_offset;
    disk.l1_size = snapshot.l1_size;
    disk.id_length = static_cast<uint16_t>(info.id.size());
    disk.name_length = static_cast<uint16_t>(info.name.size());
    disk.date_seconds = static_cast<uint32_t>(info.date_seconds);
    disk.date_nanoseconds = info.date_nanoseconds;
    disk.vm_clock_nanoseconds = info.vm_clock_nanoseconds;
    disk.vm_state_size = static_cast<uint32_t>(std::min<uint64_t>(info.vm_state_size, UINT32_MAX));
    disk.extra_size = static_cast<uint32_t>(snapshot.extra.size());
    put(AsBytes(disk));
    put(snapshot.extra);
    put(AsBytes(std::string_view(info.id)));
    put(AsBytes(std::string_view(info.name)));
    table.resize(RoundUp(table.size(), 8));
  }
  return table;
}

std::vector<std::byte> SnapshotExtra(uint64_t disk_size) {
  DiskSnapshotExtra extra{};
  extra.disk_size = disk_size;
  extra.icount = UINT64_MAX;  // not recorded
  ConstBytes bytes = AsBytes(extra);
  return {bytes.begin(), bytes.end()};
}

namespace {

constexpr uint8_t kDirtyTracking = 1;  // the only type of bitmap

Result<> CheckBitmap(const Header& header, const DiskBitmapEntry& disk) {
  constexpr uint32_t kKnownFlags = kBitmapInUse | kBitmapAuto | kBitmapExtraCompatible;
  if (disk.flags & ~kKnownFlags)
    return Fail(Code::kCorrupt, "reserved flags {:#x}", uint32_t{disk.flags});
  if (disk.type != kDirtyTracking) return Fail(Code::kUnsupported, "type {}", disk.type);
  if (disk.granularity_bits < kMinGranularityBits || disk.granularity_bits > kMaxGranularityBits) {
    return Fail(Code::kUnsupported, "granularity of 2^{} bytes (2^{} to 2^{} are supported)",
                disk.granularity_bits, kMinGranularityBits, kMaxGranularityBits);
  }
  if (disk.name_length == 0 || disk.name_length > kMaxBitmapName) {
    return Fail(Code::kCorrupt, "a name of {} bytes (1 to {})", uint16_t{disk.name_length},
                kMaxBitmapName);
  }
  uint64_t bytes = uint64_t{disk.table_size} * 8;
  if (disk.table_size > DivideUp(kMaxBitmapBytes, header.cluster_size())) {
    return Fail(Code::kUnsupported, "a table of {} entries: more than {} bytes of bits",
                uint32_t{disk.table_size}, kMaxBitmapBytes);
  }
  if (!IsAligned(disk.table_offset, header.cluster_size()) ||
      !FitsIn(disk.table_offset, bytes, kMaxOffset) || (bytes > 0 && disk.table_offset == 0)) {
    return Fail(Code::kCorrupt, "table at {:#x}", uint64_t{disk.table_offset});
  }
  // One in use may lag behind a resize; it is not going to be looked at.
  uint64_t bits = DivideUp(header.size, uint64_t{1} << disk.granularity_bits);
  uint64_t needed = DivideUp(DivideUp(bits, 8), header.cluster_size());
  if (!(disk.flags & kBitmapInUse) && disk.table_size < needed) {
    return Fail(Code::kCorrupt, "a table of {} entries is too small for the disk ({})",
                uint32_t{disk.table_size}, needed);
  }
  return {};
}

// The next entry; an error of the table if it ends inside, of the entry if that is wrong.
struct NextBitmap {
  bool whole = false;
  Result<> checked = {};
  Bitmap bitmap;
};
NextBitmap LoadBitmap(const Header& header, Cursor& cursor, uint32_t index) {
  NextBitmap next;
  cursor.Align();
  auto disk = cursor.Load<DiskBitmapEntry>();
  if (!disk) return next;
  next.bitmap.at = cursor.at() - sizeof(DiskBitmapEntry);
  auto extra = cursor.Take(disk->extra_length);
  if (!extra) return next;
  auto name = cursor.Take(disk->name_length);
  if (!name) return next;
  next.whole = true;
  Bitmap& bitmap = next.bitmap;
  bitmap.info.name = std::string(AsText(*name));
  next.checked =
      CheckBitmap(header, *disk)
          .WithPrefix(fmt::format("bitmap {} ('{}')", index, Printable(bitmap.info.name)));
  if (!next.checked) return next;
  bitmap.info.granularity = uint64_t{1} << disk->granularity_bits;
  bitmap.info.in_use = disk->flags & kBitmapInUse;
  bitmap.info.enabled = disk->flags & kBitmapAuto;
  bitmap.table_offset = disk->table_offset;
  bitmap.table_size = disk->table_size;
  bitmap.flags = disk->flags;
  bitmap.granularity_bits = disk->granularity_bits;
  bitmap.extra.assign(extra->begin(), extra->end());
  return next;
}

}  // namespace

Result<std::vector<Bitmap>> ParseBitmaps(const Header& header, ConstBytes directory,
                                         std::vector<Error>* bad) {
  std::vector<Bitmap> bitmaps;
  if (!header.bitmaps) return bitmaps;
  if (directory.size() < header.bitmaps->directory_size) {
    return Fail(Code::kCorrupt, "bitmap directory: cut short ({} of {} bytes)", directory.size(),
                header.bitmaps->directory_size);
  }
  Cursor cursor(directory.first(header.bitmaps->directory_size));
  std::unordered_set<std::string> names;
  for (uint32_t i = 0; i < header.bitmaps->count; ++i) {
    NextBitmap next = LoadBitmap(header, cursor, i);
    if (!next.whole) return CutShort("bitmap directory", i);
    if (next.checked && !names.insert(next.bitmap.info.name).second) {
      next.checked = Fail(Code::kCorrupt, "bitmap {} ('{}'): an earlier one has the same name", i,
                          Printable(next.bitmap.info.name));
    }
    if (!next.checked) {
      TRY(Report(std::move(next.checked.error()), bad));
    } else {
      bitmaps.push_back(std::move(next.bitmap));
    }
  }
  cursor.Align();
  if (cursor.at() != header.bitmaps->directory_size) {
    return Fail(Code::kCorrupt, "bitmap directory: {} bytes of entries in {} bytes", cursor.at(),
                header.bitmaps->directory_size);
  }
  return bitmaps;
}

std::vector<std::byte> BuildBitmaps(std::vector<Bitmap>& bitmaps) {
  std::vector<std::byte> directory;
  auto put = [&](ConstBytes bytes) { directory.insert(directory.end(), bytes.begin(), bytes.end()); };
  for (Bitmap& bitmap : bitmaps) {
    bitmap.at = directory.size();
    DiskBitmapEntry disk{};
    disk.table_offset = bitmap.table_offset;
    disk.table_size = bitmap.table_size;
    disk.flags = bitmap.flags;
    disk.type = kDirtyTracking;
    disk.granularity_bits = bitmap.granularity_bits;
    disk.name_length = static_cast<uint16_t>(bitmap.info.name.size());
    disk.extra_length = static_cast<uint32_t>(bitmap.extra.size());
    put(AsBytes(disk));
    put(bitmap.extra);
    put(AsBytes(std::string_view(bitmap.info.name)));
    directory.resize(RoundUp(directory.size(), 8));
  }
  return directory;
}

uint64_t LoadRefcount(ConstBytes block, uint32_t order, uint64_t index) {
  switch (order) {
    case 3: return static_cast<uint8_t>(block[index]);
    case 4: return LoadAt<be16>(block, index * 2).value();
    case 5: return LoadAt<be32>(block, index * 4).value();
    case 6: return LoadAt<be64>(block, index * 8).value();
    default: break;
  }
  CHECK(order < 3);
  // Widths below a byte fill it from its least significant bit.
  uint32_t width = 1u << order, per_byte = 8 / width;
  uint32_t byte = static_cast<uint8_t>(block[index / per_byte]);
  return byte >> (index % per_byte * width) & ((1u << width) - 1);
}

void StoreRefcount(Bytes block, uint32_t order, uint64_t index, uint64_t value) {
  switch (order) {
    case 3: block[index] = static_cast<std::byte>(value); return;
    case 4: StoreAt(block, index * 2, be16(static_cast<uint16_t>(value))); return;
    case 5: StoreAt(block, index * 4, be32(static_cast<uint32_t>(value))); return;
    case 6: StoreAt(block, index * 8, be64(value)); return;
    default: break;
  }
  CHECK(order < 3);
  uint32_t width = 1u << order, per_byte = 8 / width;
  uint32_t shift = static_cast<uint32_t>(index % per_byte * width), mask = ((1u << width) - 1)
                                                                           << shift;
  uint32_t byte = static_cast<uint8_t>(block[index / per_byte]);
  block[index / per_byte] =
      static_cast<std::byte>((byte & ~mask) | (static_cast<uint32_t>(value) << shift & mask));
}

}  // namespace platter::qcow2
