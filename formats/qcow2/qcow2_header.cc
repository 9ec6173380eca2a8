// The header cluster: fixed fields, extensions, backing name; both ways.
//
//   0            72 (v2)          header_length                        one cluster at most
//   | v2 fields  | v3 fields ...  | extension | ... | end | backing name | zeros |
//
// The extension area ends at an end extension, at the backing name, or at the end of the cluster.
// Images of old programs have none: version 2 of QEMU 0.9 puts the backing name at byte 72.
#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "formats/qcow2/qcow2_parse.h"

namespace platter::qcow2 {
namespace {

constexpr uint64_t kKnownFields = 105;  // bytes of DiskHeader up to and with compression_type
constexpr uint64_t kMaxOffset = uint64_t{1} << 63;  // file offsets are signed for everybody else

// kCorrupt unless the table is aligned, behind the header and ends below 2^63. An empty table
// (count 0) needs only its alignment.
Result<> CheckTable(const Header& header, std::string_view what, uint64_t offset, uint64_t bytes) {
  if (!IsAligned(offset, header.cluster_size())) {
    return Fail(Code::kCorrupt, "header: {} offset {:#x} is not a multiple of the cluster size {}",
                what, offset, header.cluster_size());
  }
  if (bytes == 0) return {};
  if (offset == 0) return Fail(Code::kCorrupt, "header: {} overlaps the header (offset 0)", what);
  if (!FitsIn(offset, bytes, kMaxOffset)) {
    return Fail(Code::kCorrupt, "header: {} ends past 2^63 (offset {:#x}, {} bytes)", what, offset,
                bytes);
  }
  return {};
}

Result<DiskHeader> LoadDiskHeader(ConstBytes head) {
  if (head.size() < kHeaderLengthV2) {
    return Fail(Code::kCorrupt, "header: {} bytes are too short for one", head.size());
  }
  DiskHeader disk;
  std::memset(static_cast<void*>(&disk), 0, sizeof disk);
  std::memcpy(&disk, head.data(), std::min<size_t>(head.size(), sizeof disk));
  if (disk.magic != kMagic) return Fail(Code::kCorrupt, "header: not a qcow2 image (no magic)");
  if (disk.version != 2 && disk.version != 3) {
    return Fail(Code::kUnsupported, "header: qcow2 version {}", uint32_t{disk.version});
  }
  if (disk.cluster_bits < kMinClusterBits || disk.cluster_bits > kMaxClusterBits) {
    return Fail(Code::kUnsupported,
                "header: cluster size of 2^{} bytes (2^{} to 2^{} are supported)",
                uint32_t{disk.cluster_bits}, kMinClusterBits, kMaxClusterBits);
  }
  if (disk.version == 3 && head.size() < kHeaderLengthV3) {
    return Fail(Code::kCorrupt, "header: {} bytes are too short for version 3", head.size());
  }
  return disk;
}

// One header extension. `data` points into the header cluster.
struct Extension {
  uint32_t type;
  uint64_t offset;  // of its type field, for messages
  ConstBytes data;
};

// Walks the extension area.
class Extensions {
 public:
  Extensions(ConstBytes head, uint64_t begin, uint64_t end) : head_(head), at_(begin), end_(end) {}

  // Nothing at the end. kCorrupt for one that is longer than what is left.
  Result<std::optional<Extension>> Next() {
    if (!FitsIn(at_, sizeof(DiskExtension), end_)) return std::nullopt;
    auto disk = LoadAt<DiskExtension>(head_, at_);
    // A file cut inside its first cluster reads on as zeros: an end extension.
    if (!disk || disk->type == kExtEnd) return std::nullopt;
    uint64_t data = at_ + sizeof *disk;
    uint64_t end = std::min<uint64_t>(end_, head_.size());
    if (!FitsIn(data, disk->length, end)) {
      return Fail(Code::kCorrupt,
                  "header extension {:#x} at {:#x}: {} bytes are more than the extension area has",
                  uint32_t{disk->type}, at_, uint32_t{disk->length});
    }
    Extension extension{disk->type, at_, head_.subspan(data, disk->length)};
    at_ = data + RoundUp(disk->length, 8);
    return extension;
  }

 private:
  ConstBytes head_;
  uint64_t at_, end_;
};

// "bit 5 (its name)" for each bit, named by the image's own feature name table where it does.
std::string DescribeUnknownBits(Extensions extensions, uint64_t bits) {
  ConstBytes names;
  while (true) {
    auto next = extensions.Next();
    if (!next.has_value() || !next->has_value()) break;
    if ((*next)->type == kExtFeatureNames) names = (*next)->data;
  }
  std::string text;
  for (uint8_t bit = 0; bit < 64; ++bit) {
    if (!(bits >> bit & 1)) continue;
    if (!text.empty()) text += ", ";
    text += fmt::format("bit {}", bit);
    for (uint64_t at = 0;; at += sizeof(DiskFeatureName)) {
      auto entry = LoadAt<DiskFeatureName>(names, at);
      if (!entry) break;
      if (entry->type != 0 || entry->bit != bit) continue;
      std::string_view name(entry->name, strnlen(entry->name, sizeof entry->name));
      text += fmt::format(" ('{}')", Printable(name));
      break;
    }
  }
  return text;
}

Result<> ParseDataFileExtension(Header& header, const Extension& extension) {
  header.data_file_name = std::string(AsText(extension.data));
  return {};
}

Result<> ParseBackingFormatExtension(Header& header, const Extension& extension) {
  if (extension.data.size() > kMaxBackingFormat) {
    return Fail(Code::kCorrupt,
                "backing format extension at {:#x}: {} bytes, at most {} make sense",
                extension.offset, extension.data.size(), kMaxBackingFormat);
  }
  header.backing_format = std::string(AsText(extension.data));
  return {};
}

Result<> ParseCryptoExtension(Header& header, const Extension& extension) {
  if (header.crypt_method != kCryptLuks) {
    return Fail(Code::kCorrupt,
                "encryption extension at {:#x}: the image is not encrypted with LUKS",
                extension.offset);
  }
  auto disk = LoadAt<DiskCryptoExtension>(extension.data, 0);
  if (!disk || extension.data.size() != sizeof *disk) {
    return Fail(Code::kCorrupt, "encryption extension at {:#x}: {} bytes instead of {}",
                extension.offset, extension.data.size(), sizeof(DiskCryptoExtension));
  }
  uint64_t length = disk->length;
  if (length == 0 || length > kMaxCryptoHeaderBytes) {
    return Fail(Code::kCorrupt, "encryption extension at {:#x}: a LUKS header of {} bytes",
                extension.offset, length);
  }
  TRY(CheckTable(header, "LUKS header", disk->offset, length));
  header.crypto = Header::Crypto{disk->offset, length};
  return {};
}

Result<> ParseBitmapsExtension(Header& header, const Extension& extension) {
  // Without its bit the extension is what a program left that does not know it: stale, maybe
  // nonsense by now.
  if (!(header.autoclear & kBitmapsConsistent)) {
    header.stale_bitmaps = true;
    return {};
  }
  auto disk = LoadAt<DiskBitmapsExtension>(extension.data, 0);
  if (!disk || extension.data.size() != sizeof *disk) {
    return Fail(Code::kCorrupt, "bitmaps extension at {:#x}: {} bytes instead of {}",
                extension.offset, extension.data.size(), sizeof(DiskBitmapsExtension));
  }
  if (disk->reserved != 0) {
    return Fail(Code::kCorrupt, "bitmaps extension at {:#x}: reserved field is {:#x}",
                extension.offset, uint32_t{disk->reserved});
  }
  Header::Bitmaps bitmaps{disk->nb_bitmaps, disk->directory_size, disk->directory_offset};
  if (bitmaps.count == 0 || bitmaps.count > kMaxBitmaps) {
    return Fail(Code::kCorrupt, "bitmaps extension at {:#x}: {} bitmaps (1 to {} are supported)",
                extension.offset, bitmaps.count, kMaxBitmaps);
  }
  if (bitmaps.directory_size > kMaxBitmapDirectoryBytes ||
      bitmaps.directory_size < bitmaps.count * sizeof(DiskBitmapEntry)) {
    return Fail(Code::kCorrupt,
                "bitmaps extension at {:#x}: a directory of {} bytes for {} bitmaps",
                extension.offset, bitmaps.directory_size, bitmaps.count);
  }
  TRY(CheckTable(header, "bitmap directory", bitmaps.directory_offset, bitmaps.directory_size));
  header.bitmaps = bitmaps;
  return {};
}

Result<> ParseExtensions(Header& header, Extensions extensions) {
  std::vector<uint32_t> seen;
  while (true) {
    auto next = TRY(extensions.Next());
    if (!next) break;
    Result<> (*parse)(Header&, const Extension&) = nullptr;
    switch (next->type) {
      case kExtBackingFormat: parse = ParseBackingFormatExtension; break;
      case kExtCrypto: parse = ParseCryptoExtension; break;
      case kExtDataFile: parse = ParseDataFileExtension; break;
      case kExtBitmaps: parse = ParseBitmapsExtension; break;
      case kExtFeatureNames: continue;  // ours to write
      default:
        header.unknown_extensions.push_back({next->type, {next->data.begin(), next->data.end()}});
        continue;
    }
    if (std::find(seen.begin(), seen.end(), next->type) != seen.end()) {
      return Fail(Code::kCorrupt, "header extension {:#x} at {:#x}: there is one already",
                  next->type, next->offset);
    }
    seen.push_back(next->type);
    TRY(parse(header, *next));
  }
  if (header.crypt_method == kCryptLuks && !header.crypto) {
    return Fail(Code::kCorrupt,
                "header: encrypted with LUKS, but no extension says where the LUKS header is");
  }
  // The bit alone says nothing; QEMU reads over it too.
  if (!header.bitmaps) header.autoclear &= ~kBitmapsConsistent;
  return {};
}

// Version 3's fields up to the features, and what they demand of one another.
Result<> ParseVersion3(Header& header, const DiskHeader& disk, ConstBytes head) {
  uint32_t length = disk.header_length;
  if (length < kHeaderLengthV3 || length % 8 != 0 || length > head.size()) {
    return Fail(Code::kCorrupt,
                "header: header_length {} (at least {}, a multiple of 8, within {} bytes)", length,
                kHeaderLengthV3, head.size());
  }
  header.incompatible = disk.incompatible_features;
  header.compatible = disk.compatible_features;
  header.autoclear = disk.autoclear_features;
  header.refcount_order = disk.refcount_order;
  if (length > kKnownFields) {
    ConstBytes rest = head.subspan(kKnownFields, length - kKnownFields);
    while (!rest.empty() && rest.back() == std::byte{0}) rest = rest.first(rest.size() - 1);
    header.unknown_fields.assign(rest.begin(), rest.end());
  }
  return {};
}

Result<> CheckFeatures(Header& header, const DiskHeader& disk, Extensions extensions) {
  if (uint64_t unknown = header.incompatible & ~kKnownIncompatible) {
    return Fail(Code::kUnsupported, "header: unknown incompatible features: {}",
                DescribeUnknownBits(extensions, unknown));
  }
  if (header.refcount_order > 6) {
    return Fail(Code::kCorrupt, "header: refcount_order {} (0 to 6 are defined)",
                header.refcount_order);
  }
  if (header.extended_l2() && header.cluster_bits < kMinExtendedL2Bits) {
    return Fail(Code::kCorrupt,
                "header: extended L2 entries with clusters of {} bytes (at least {})",
                header.cluster_size(), uint64_t{1} << kMinExtendedL2Bits);
  }
  bool bit = header.incompatible & kCompressionBit;
  uint8_t type =
      header.version >= 3 && disk.header_length > kHeaderLengthV3 ? disk.compression_type : 0;
  if (type > kCompressionZstd) return Fail(Code::kUnsupported, "header: compression type {}", type);
  if (bit != (type != kCompressionDeflate)) {
    return Fail(Code::kCorrupt, "header: compression type {} contradicts its feature bit ({})",
                type, bit ? "set" : "not set");
  }
  header.compression = static_cast<CompressionType>(type);
  if ((header.autoclear & kDataFileRaw) && !header.has_data_file()) {
    return Fail(Code::kCorrupt, "header: raw external data without an external data file");
  }
  if (header.has_data_file() && header.snapshot_count > 0) {
    return Fail(Code::kCorrupt, "header: internal snapshots with an external data file");
  }
  return {};
}

Result<> CheckTables(const Header& header) {
  uint64_t l1_bytes = uint64_t{header.l1_size} * 8;
  if (l1_bytes > kMaxL1Bytes) {
    return Fail(Code::kUnsupported, "header: L1 table of {} entries (at most {})", header.l1_size,
                kMaxL1Bytes / 8);
  }
  TRY(CheckTable(header, "L1 table", header.l1_offset, l1_bytes));
  if (header.l1_size < header.l1_entries_for(header.size)) {
    return Fail(Code::kCorrupt,
                "header: an L1 table of {} entries is too small for a disk of {} bytes ({})",
                header.l1_size, header.size, header.l1_entries_for(header.size));
  }
  uint64_t refcount_bytes = uint64_t{header.refcount_table_clusters} << header.cluster_bits;
  if (refcount_bytes > kMaxRefcountTableBytes) {
    return Fail(Code::kUnsupported, "header: refcount table of {} bytes (at most {})",
                refcount_bytes, kMaxRefcountTableBytes);
  }
  TRY(CheckTable(header, "refcount table", header.refcount_table_offset, refcount_bytes));
  if (header.snapshot_count > kMaxSnapshots) {
    return Fail(Code::kUnsupported, "header: {} snapshots (at most {})", header.snapshot_count,
                kMaxSnapshots);
  }
  if (header.snapshot_count > 0) {
    TRY(CheckTable(header, "snapshot table", header.snapshots_offset,
                   header.snapshot_count * sizeof(DiskSnapshot)));
  }
  return {};
}

Result<> ParseBackingName(Header& header, const DiskHeader& disk, uint64_t header_length,
                          ConstBytes head) {
  if (disk.backing_file_offset == 0 || disk.backing_file_size == 0) return {};
  uint64_t offset = disk.backing_file_offset;
  uint32_t length = disk.backing_file_size;
  if (length > kMaxBackingName) {
    return Fail(Code::kCorrupt, "header: backing file name of {} bytes (at most {})", length,
                kMaxBackingName);
  }
  if (offset < header_length || !FitsIn(offset, length, head.size())) {
    return Fail(Code::kCorrupt,
                "header: backing file name at {:#x}, {} bytes, is not inside the first cluster",
                offset, length);
  }
  header.has_backing = true;
  header.backing_name = std::string(AsText(head.subspan(offset, length)));
  if (header.data_file_raw()) {
    return Fail(Code::kCorrupt, "header: a backing file with raw external data");
  }
  return {};
}

}  // namespace

uint64_t Header::refcount_max() const {
  return refcount_order >= 6 ? ~uint64_t{0} : (uint64_t{1} << refcount_bits()) - 1;
}

Result<uint64_t> HeaderBytesNeeded(ConstBytes first32) {
  auto magic = LoadAt<be32>(first32, 0);
  auto bits = LoadAt<be32>(first32, 20);
  if (!magic || !bits || *magic != kMagic) {
    return Fail(Code::kCorrupt, "header: not a qcow2 image (no magic)");
  }
  if (*bits < kMinClusterBits || *bits > kMaxClusterBits) {
    return Fail(Code::kUnsupported,
                "header: cluster size of 2^{} bytes (2^{} to 2^{} are supported)", uint32_t{*bits},
                kMinClusterBits, kMaxClusterBits);
  }
  return uint64_t{1} << *bits;
}

Result<Header> ParseHeader(ConstBytes head) {
  DiskHeader disk = TRY(LoadDiskHeader(head));
  Header header;
  header.version = disk.version;
  header.cluster_bits = disk.cluster_bits;
  header.size = disk.size;
  header.l1_size = disk.l1_size;
  header.l1_offset = disk.l1_table_offset;
  header.refcount_table_offset = disk.refcount_table_offset;
  header.refcount_table_clusters = disk.refcount_table_clusters;
  header.snapshot_count = disk.nb_snapshots;
  header.snapshots_offset = disk.snapshots_offset;
  head = head.first(std::min<uint64_t>(head.size(), header.cluster_size()));

  uint64_t header_length = kHeaderLengthV2;
  if (header.version >= 3) {
    TRY(ParseVersion3(header, disk, head));
    header_length = disk.header_length;
  }
  uint64_t extensions_end = header.cluster_size();
  if (disk.backing_file_offset != 0) {
    extensions_end = std::min<uint64_t>(extensions_end, disk.backing_file_offset);
  }
  Extensions extensions(head, header_length, extensions_end);

  TRY(CheckFeatures(header, disk, extensions));
  if (header.size >= kMaxOffset) {
    return Fail(Code::kCorrupt, "header: a disk of {:#x} bytes (2^63 is the limit)", header.size);
  }
  if (disk.crypt_method > kCryptLuks) {
    return Fail(Code::kUnsupported, "header: encryption method {}", uint32_t{disk.crypt_method});
  }
  header.crypt_method = static_cast<CryptMethod>(uint32_t{disk.crypt_method});
  TRY(CheckTables(header));
  TRY(ParseBackingName(header, disk, header_length, head));
  TRY(ParseExtensions(header, extensions));
  return header;
}

Result<> CheckLayout(const Header& header) {
  std::vector<std::pair<Range, std::string_view>> parts;
  auto add = [&](uint64_t offset, uint64_t bytes, std::string_view what) {
    if (bytes > 0) parts.push_back({Range{offset, RoundUp(bytes, header.cluster_size())}, what});
  };
  add(0, header.cluster_size(), "header");
  add(header.l1_offset, uint64_t{header.l1_size} * 8, "L1 table");
  add(header.refcount_table_offset, header.refcount_table_entries() * 8, "refcount table");
  add(header.snapshots_offset, header.snapshot_count * sizeof(DiskSnapshot), "snapshot table");
  if (header.bitmaps)
    add(header.bitmaps->directory_offset, header.bitmaps->directory_size, "bitmap directory");
  if (header.crypto) add(header.crypto->offset, header.crypto->length, "LUKS header");
  std::sort(parts.begin(), parts.end(),
            [](const auto& a, const auto& b) { return a.first.offset < b.first.offset; });
  for (size_t i = 1; i < parts.size(); ++i) {
    const auto& [before, before_name] = parts[i - 1];
    const auto& [after, after_name] = parts[i];
    if (before.end() > after.offset) {
      return Fail(Code::kCorrupt, "header: {} at {:#x} and {} at {:#x} overlap", before_name,
                  before.offset, after_name, after.offset);
    }
  }
  return {};
}

namespace {

// Bytes of the header cluster as they are appended; one past the end is an error at the end.
class HeaderWriter {
 public:
  explicit HeaderWriter(std::vector<std::byte>& out, uint64_t start) : out_(out), at_(start) {}

  static uint64_t ExtensionSize(uint64_t length) {
    return sizeof(DiskExtension) + RoundUp(length, 8);
  }
  uint64_t at() const { return at_; }
  bool fits() const { return at_ <= out_.size(); }

  void Put(ConstBytes bytes) {
    if (FitsIn(at_, bytes.size(), out_.size())) {
      std::copy(bytes.begin(), bytes.end(), out_.begin() + static_cast<ptrdiff_t>(at_));
    }
    at_ += bytes.size();
  }
  void PutExtension(uint32_t type, ConstBytes data) {
    DiskExtension disk;
    disk.type = type;
    disk.length = static_cast<uint32_t>(data.size());
    Put(AsBytes(disk));
    Put(data);
    at_ = RoundUp(at_, 8);
  }

 private:
  std::vector<std::byte>& out_;
  uint64_t at_;
};

// The names are a convention that programs share: what one writes another prints.
std::vector<std::byte> FeatureNameTable() {
  struct Name {
    uint8_t type, bit;
    std::string_view text;
  };
  constexpr Name kNames[] = {
      {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
      {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
      {2, 0, "bitmaps"},          {2, 1, "raw external data"},
  };
  std::vector<std::byte> table(std::size(kNames) * sizeof(DiskFeatureName));
  for (size_t i = 0; i < std::size(kNames); ++i) {
    DiskFeatureName entry = {};
    entry.type = kNames[i].type;
    entry.bit = kNames[i].bit;
    kNames[i].text.copy(entry.name, sizeof entry.name);
    StoreAt(Bytes(table), i * sizeof entry, entry);
  }
  return table;
}

DiskHeader FixedFields(const Header& header) {
  DiskHeader disk;
  std::memset(static_cast<void*>(&disk), 0, sizeof disk);
  disk.magic = kMagic;
  disk.version = header.version;
  disk.cluster_bits = header.cluster_bits;
  disk.size = header.size;
  disk.crypt_method = header.crypt_method;
  disk.l1_size = header.l1_size;
  disk.l1_table_offset = header.l1_offset;
  disk.refcount_table_offset = header.refcount_table_offset;
  disk.refcount_table_clusters = header.refcount_table_clusters;
  disk.nb_snapshots = header.snapshot_count;
  disk.snapshots_offset = header.snapshots_offset;
  disk.incompatible_features = header.incompatible;
  disk.compatible_features = header.compatible;
  disk.autoclear_features = header.autoclear;
  disk.refcount_order = header.refcount_order;
  disk.compression_type = header.compression;
  return disk;
}

// How a header lies in the first cluster.
struct Form {
  uint64_t bytes;                   // that may be used for it
  bool feature_names;               // where there is room for them
  std::optional<uint64_t> name_at;  // the backing name lies there; else behind the extensions
};

void PutExtensions(const Header& header, HeaderWriter& writer, const Form& form) {
  if (!header.backing_format.empty()) {
    writer.PutExtension(kExtBackingFormat, AsBytes(std::string_view(header.backing_format)));
  }
  if (header.data_file_name) {
    writer.PutExtension(kExtDataFile, AsBytes(std::string_view(*header.data_file_name)));
  }
  if (header.crypto) {
    DiskCryptoExtension disk;
    disk.offset = header.crypto->offset;
    disk.length = header.crypto->length;
    writer.PutExtension(kExtCrypto, AsBytes(disk));
  }
  if (header.bitmaps) {
    DiskBitmapsExtension disk;
    disk.nb_bitmaps = header.bitmaps->count;
    disk.reserved = 0;
    disk.directory_size = header.bitmaps->directory_size;
    disk.directory_offset = header.bitmaps->directory_offset;
    writer.PutExtension(kExtBitmaps, AsBytes(disk));
  }
  for (const UnknownExtension& extension : header.unknown_extensions) {
    writer.PutExtension(extension.type, extension.data);
  }
  // A courtesy to other programs, left out where a small cluster needs its room for something else.
  std::vector<std::byte> names = FeatureNameTable();
  uint64_t rest = sizeof(DiskExtension) + header.backing_name.size();
  if (form.feature_names && header.version >= 3 &&
      FitsIn(writer.at(), HeaderWriter::ExtensionSize(names.size()) + rest, form.bytes)) {
    writer.PutExtension(kExtFeatureNames, names);
  }
  writer.PutExtension(kExtEnd, {});
}

Result<std::vector<std::byte>> Build(const Header& header, const Form& form) {
  CHECK(header.cluster_bits >= kMinClusterBits && header.cluster_bits <= kMaxClusterBits);
  if (header.backing_name.size() > kMaxBackingName ||
      header.backing_format.size() > kMaxBackingFormat ||
      (header.has_backing && header.backing_name.empty())) {
    return Fail(Code::kOutOfRange,
                "header: backing file name of {} bytes (1 to {}), format name of {} (at most {})",
                header.backing_name.size(), kMaxBackingName, header.backing_format.size(),
                kMaxBackingFormat);
  }
  std::vector<std::byte> out(form.bytes);
  DiskHeader disk = FixedFields(header);
  uint64_t length = kHeaderLengthV2;
  if (header.version >= 3) {
    length =
        std::max<uint64_t>(sizeof disk, RoundUp(kKnownFields + header.unknown_fields.size(), 8));
    disk.header_length = static_cast<uint32_t>(length);
    HeaderWriter(out, kKnownFields).Put(header.unknown_fields);
  }
  HeaderWriter writer(out, length);
  PutExtensions(header, writer, form);
  if (header.has_backing) {
    disk.backing_file_offset = form.name_at.value_or(writer.at());
    disk.backing_file_size = static_cast<uint32_t>(header.backing_name.size());
    if (!form.name_at) writer.Put(AsBytes(std::string_view(header.backing_name)));
  }
  if (!writer.fits()) {
    return Fail(Code::kOutOfRange,
                "header: {} bytes of header, extensions and backing file name do not fit into {}",
                writer.at(), form.bytes);
  }
  ConstBytes fixed = AsBytes(disk).first(header.version >= 3 ? kKnownFields : kHeaderLengthV2);
  std::copy(fixed.begin(), fixed.end(), out.begin());
  return out;
}

// Where the extension area ends: behind its end extension, or with the area itself.
Result<uint64_t> EndOfExtensions(const Header& header, const DiskHeader& disk, ConstBytes head) {
  const uint64_t start = header.version >= 3 ? uint64_t{disk.header_length} : kHeaderLengthV2;
  const uint64_t end =
      disk.backing_file_offset != 0 ? uint64_t{disk.backing_file_offset} : header.cluster_size();
  Extensions extensions(head, start, std::min<uint64_t>(end, head.size()));
  uint64_t used = start;
  while (auto extension = TRY(extensions.Next())) {
    used = extension->offset + HeaderWriter::ExtensionSize(extension->data.size());
  }
  return used + sizeof(DiskExtension);
}

}  // namespace

Result<std::vector<std::byte>> BuildHeader(const Header& header) {
  return Build(header, {header.cluster_size(), true, std::nullopt});
}

Result<std::vector<std::byte>> BuildFirstSector(const Header& header,
                                                std::optional<uint64_t> name_at) {
  return Build(header, {kSector, false, name_at});
}

Result<Range> NamePlace(ConstBytes head) {
  if (!TRY(ParseHeader(head)).has_backing) return Range{};
  const DiskHeader disk = TRY(LoadDiskHeader(head));
  return Range{disk.backing_file_offset, disk.backing_file_size};
}

Result<uint64_t> FindRoomForName(ConstBytes head, uint64_t length) {
  const Header header = TRY(ParseHeader(head));
  const uint64_t extensions = TRY(EndOfExtensions(header, TRY(LoadDiskHeader(head)), head));
  const Range name = TRY(NamePlace(head));
  for (uint64_t at : {std::max(kSector, extensions), std::max(kSector, name.end())}) {
    const Range room{at, length};
    bool free = room.offset >= extensions && !room.Overlaps(name);
    if (free && FitsIn(room.offset, room.length, header.cluster_size())) return at;
  }
  return Fail(Code::kNoSpace, "header: {} bytes of backing file name find no room beside the old",
              length);
}

}  // namespace platter::qcow2
