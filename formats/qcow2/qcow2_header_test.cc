// Every field of the header and of each extension: what is accepted, refused, and written back.
#include <gtest/gtest.h>

#include <cstring>

#include "formats/qcow2/qcow2_parse.h"

namespace platter::qcow2 {
namespace {

// A first cluster that ParseHeader accepts, to be damaged.
struct Image {
  std::vector<std::byte> bytes = std::vector<std::byte>(65536);
  uint64_t next_extension = 112;

  Image() {
    DiskHeader disk = {};
    disk.magic = kMagic;
    disk.version = 3;
    disk.cluster_bits = 16;
    disk.size = 1 << 20;
    disk.l1_size = 1;
    disk.l1_table_offset = 0x30000;
    disk.refcount_table_offset = 0x10000;
    disk.refcount_table_clusters = 1;
    disk.refcount_order = 4;
    disk.header_length = 112;
    StoreAt(Bytes(bytes), 0, disk);
  }
  Image& Put32(uint64_t offset, uint32_t value) {
    StoreAt(Bytes(bytes), offset, be32(value));
    return *this;
  }
  Image& Put64(uint64_t offset, uint64_t value) {
    StoreAt(Bytes(bytes), offset, be64(value));
    return *this;
  }
  Image& Put8(uint64_t offset, uint8_t value) {
    bytes[offset] = static_cast<std::byte>(value);
    return *this;
  }
  Image& Text(uint64_t offset, std::string_view text) {
    std::memcpy(bytes.data() + offset, text.data(), text.size());
    return *this;
  }
  Image& Extension(uint32_t type, std::string_view data) {
    Put32(next_extension, type).Put32(next_extension + 4, static_cast<uint32_t>(data.size()));
    Text(next_extension + 8, data);
    next_extension += 8 + RoundUp(data.size(), 8);
    return *this;
  }
  Image& Version2() {
    std::memset(bytes.data() + 72, 0, bytes.size() - 72);
    next_extension = 72;
    return Put32(4, 2);
  }
};

// Offsets of fields, as the specification numbers them.
constexpr uint64_t kVersion = 4, kBackingOffset = 8, kBackingSize = 16, kClusterBits = 20,
                   kSize = 24, kCrypt = 32, kL1Size = 36, kL1Offset = 40, kRtOffset = 48,
                   kRtClusters = 56, kSnapshotCount = 60, kSnapshotsOffset = 64, kIncompatible = 72,
                   kCompatible = 80, kAutoclear = 88, kOrder = 96, kHeaderLength = 100,
                   kCompression = 104;

template <class T>
void ExpectError(const Result<T>& result, Code code, std::string_view part) {
  ASSERT_FALSE(result.has_value()) << "expected an error with: " << part;
  EXPECT_EQ(CodeName(result.error().code()), CodeName(code)) << result.error().text();
  EXPECT_NE(result.error().text().find(part), std::string::npos) << result.error().text();
}

void ExpectError(const Image& image, Code code, std::string_view part) {
  ExpectError(ParseHeader(image.bytes), code, part);
}

Header Parse(const Image& image) {
  auto header = ParseHeader(image.bytes);
  EXPECT_TRUE(header.has_value()) << header.error().text();
  return header.has_value() ? std::move(*header) : Header();
}

std::string Bytes16(uint64_t first, uint64_t second) {
  be64 both[2] = {first, second};
  return std::string(reinterpret_cast<const char*>(both), sizeof both);
}

std::string BitmapsExtension(uint32_t count, uint32_t reserved, uint64_t size, uint64_t offset) {
  DiskBitmapsExtension disk = {};
  disk.nb_bitmaps = count;
  disk.reserved = reserved;
  disk.directory_size = size;
  disk.directory_offset = offset;
  return std::string(AsText(AsBytes(disk)));
}

TEST(Header, Plain) {
  Header header = Parse(Image());
  EXPECT_EQ(header.version, 3u);
  EXPECT_EQ(header.cluster_size(), 65536u);
  EXPECT_EQ(header.size, 1u << 20);
  EXPECT_EQ(header.l1_size, 1u);
  EXPECT_EQ(header.l1_offset, 0x30000u);
  EXPECT_EQ(header.refcount_table_offset, 0x10000u);
  EXPECT_EQ(header.refcount_table_clusters, 1u);
  EXPECT_EQ(header.refcount_bits(), 16u);
  EXPECT_EQ(header.refcount_max(), 65535u);
  EXPECT_EQ(header.l2_entries(), 8192u);
  EXPECT_EQ(header.l2_span(), 512 * kMiB);
  EXPECT_EQ(header.l1_entries_for(512 * kMiB + 1), 2u);
  EXPECT_EQ(header.refcounts_per_block(), 32768u);
  EXPECT_EQ(header.refcount_table_entries(), 8192u);
  EXPECT_FALSE(header.has_backing);
  EXPECT_FALSE(header.data_file_name.has_value());
}

TEST(Header, MagicAndLength) {
  ExpectError(Image().Put32(0, 0x514649fa), Code::kCorrupt, "magic");
  Image image;
  ExpectError(ParseHeader(ConstBytes(image.bytes).first(71)), Code::kCorrupt, "too short");
  ExpectError(ParseHeader(ConstBytes(image.bytes).first(103)), Code::kCorrupt, "too short");
  ExpectError(ParseHeader(ConstBytes()), Code::kCorrupt, "too short");
  // A file that ends after its header still says what it is.
  EXPECT_TRUE(ParseHeader(ConstBytes(image.bytes).first(112)).has_value());
}

TEST(Header, Version) {
  for (uint32_t version : {0u, 1u, 4u, 0x7fffffffu}) {
    ExpectError(Image().Put32(kVersion, version), Code::kUnsupported, "version");
  }
}

TEST(Header, Version2IgnoresWhatVersion3Added) {
  Image image;
  image.Version2();
  image.Extension(0x12345678, std::string(40, '\xff'));
  Header header = Parse(image);
  EXPECT_EQ(header.version, 2u);
  EXPECT_EQ(header.incompatible, 0u);
  EXPECT_EQ(header.refcount_order, 4u);
  EXPECT_EQ(header.compression, kCompressionDeflate);
  ASSERT_EQ(header.unknown_extensions.size(), 1u);
  EXPECT_EQ(header.unknown_extensions[0].data.size(), 40u);
}

TEST(Header, ClusterBits) {
  for (uint32_t bits : {0u, 1u, 8u, 22u, 31u, 63u, 0xffffffffu}) {
    Image image;
    image.Put32(kClusterBits, bits);
    ExpectError(image, Code::kUnsupported, "cluster size");
    ExpectError(HeaderBytesNeeded(ConstBytes(image.bytes).first(32)), Code::kUnsupported,
                "cluster size");
  }
  EXPECT_EQ(HeaderBytesNeeded(ConstBytes(Image().bytes).first(32)).value(), 65536u);
  ExpectError(HeaderBytesNeeded(ConstBytes(Image().bytes).first(23)), Code::kCorrupt, "magic");
  Image small;
  small.Put32(kClusterBits, 9).Put64(kSize, 512);
  EXPECT_EQ(Parse(small).cluster_size(), 512u);
}

TEST(Header, Size) {
  for (uint64_t size : {uint64_t{1} << 63, ~uint64_t{0}}) {
    ExpectError(Image().Put64(kSize, size), Code::kCorrupt, "2^63");
  }
  EXPECT_EQ(Parse(Image().Put64(kSize, 12345)).size, 12345u);
  // An L1 table for the largest of all disks would be too large.
  ExpectError(Image().Put64(kSize, (uint64_t{1} << 63) - 1), Code::kCorrupt, "too small");
}

TEST(Header, L1Table) {
  ExpectError(Image().Put32(kL1Size, 0), Code::kCorrupt, "too small");
  ExpectError(Image().Put64(kSize, kTiB), Code::kCorrupt, "too small");
  ExpectError(Image().Put32(kL1Size, 0x7fffffff), Code::kUnsupported, "L1 table");
  ExpectError(Image().Put32(kL1Size, (32 << 20) / 8 + 1), Code::kUnsupported, "L1 table");
  EXPECT_EQ(Parse(Image().Put32(kL1Size, (32 << 20) / 8)).l1_size, 4u << 20);
  ExpectError(Image().Put64(kL1Offset, 0x30008), Code::kCorrupt, "multiple");
  ExpectError(Image().Put64(kL1Offset, 0), Code::kCorrupt, "overlaps the header");
  ExpectError(Image().Put64(kL1Offset, 0xffffffffffff0000), Code::kCorrupt, "2^63");
  ExpectError(Image().Put64(kL1Offset, 0x7fffffffffffffff), Code::kCorrupt, "multiple");
  ExpectError(Image().Put64(kL1Offset, uint64_t{1} << 63), Code::kCorrupt, "2^63");
  EXPECT_EQ(Parse(Image().Put64(kSize, 0).Put32(kL1Size, 0).Put64(kL1Offset, 0)).l1_size, 0u);
}

TEST(Header, RefcountTable) {
  ExpectError(Image().Put64(kRtOffset, 0x10200), Code::kCorrupt, "multiple");
  ExpectError(Image().Put64(kRtOffset, 0), Code::kCorrupt, "overlaps the header");
  ExpectError(Image().Put64(kRtOffset, 0xffffffffffff0000), Code::kCorrupt, "2^63");
  ExpectError(Image().Put32(kRtClusters, 131073), Code::kUnsupported, "refcount table");
  ExpectError(Image().Put32(kRtClusters, 0x7fffffff), Code::kUnsupported, "refcount table");
  ExpectError(Image().Put32(kRtClusters, 0xffffffff), Code::kUnsupported, "refcount table");
  EXPECT_EQ(Parse(Image().Put32(kRtClusters, 128)).refcount_table_entries(), kMiB);
  EXPECT_EQ(Parse(Image().Put32(kRtClusters, 0)).refcount_table_clusters, 0u);
}

TEST(Header, RefcountOrder) {
  ExpectError(Image().Put32(kOrder, 7), Code::kCorrupt, "refcount_order 7");
  ExpectError(Image().Put32(kOrder, 0xffffffff), Code::kCorrupt, "refcount_order");
  EXPECT_EQ(Parse(Image().Put32(kOrder, 6)).refcount_max(), ~uint64_t{0});
  EXPECT_EQ(Parse(Image().Put32(kOrder, 0)).refcount_max(), 1u);
  EXPECT_EQ(Parse(Image().Put32(kOrder, 0)).refcounts_per_block(), 65536u * 8);
}

TEST(Header, Snapshots) {
  ExpectError(Image().Put32(kSnapshotCount, 65537), Code::kUnsupported, "snapshots");
  ExpectError(Image().Put32(kSnapshotCount, 0x80000000), Code::kUnsupported, "snapshots");
  ExpectError(Image().Put32(kSnapshotCount, 1).Put64(kSnapshotsOffset, 0x40001), Code::kCorrupt,
              "multiple");
  ExpectError(Image().Put32(kSnapshotCount, 1), Code::kCorrupt, "overlaps the header");
  ExpectError(Image().Put32(kSnapshotCount, 1).Put64(kSnapshotsOffset, 0xffffffffffff0000),
              Code::kCorrupt, "2^63");
  EXPECT_EQ(Parse(Image().Put32(kSnapshotCount, 2).Put64(kSnapshotsOffset, 0x40000)).snapshot_count,
            2u);
  // Without snapshots the offset means nothing.
  EXPECT_EQ(Parse(Image().Put64(kSnapshotsOffset, 77)).snapshots_offset, 77u);
}

TEST(Header, HeaderLength) {
  for (uint32_t length : {0u, 72u, 103u, 105u, 65544u, 0xfffffff8u}) {
    ExpectError(Image().Put32(kHeaderLength, length), Code::kCorrupt, "header_length");
  }
  Header header = Parse(Image().Put32(kHeaderLength, 104));
  EXPECT_EQ(header.compression, kCompressionDeflate);
  header = Parse(Image().Put32(kHeaderLength, 65536));
  EXPECT_TRUE(header.unknown_fields.empty());
}

TEST(Header, UnknownFieldsAreKept) {
  Header header = Parse(Image().Put32(kHeaderLength, 128).Put8(106, 7).Put8(120, 9));
  ASSERT_EQ(header.unknown_fields.size(), 120u - 105 + 1);
  EXPECT_EQ(header.unknown_fields[1], std::byte{7});
  EXPECT_EQ(header.unknown_fields.back(), std::byte{9});
  auto built = BuildHeader(header);
  ASSERT_TRUE(built.has_value());
  EXPECT_EQ((*built)[120], std::byte{9});
  EXPECT_EQ(ParseHeader(*built).value(), header);
}

TEST(Header, UnknownIncompatibleFeatures) {
  ExpectError(Image().Put64(kIncompatible, 1 << 5), Code::kUnsupported, "bit 5");
  ExpectError(Image().Put64(kIncompatible, uint64_t{1} << 62 | uint64_t{1} << 31),
              Code::kUnsupported, "bit 31, bit 62");
  // Named by the image, made printable; a name without a terminator ends with its field.
  std::string name = std::string("\0\x05", 2) + std::string(46, 'A');
  ExpectError(Image().Put64(kIncompatible, 1 << 5).Extension(kExtFeatureNames, name),
              Code::kUnsupported, "bit 5 ('" + std::string(46, 'A') + "')");
  name = std::string("\0\x05\x1b]0;x\a%s%n", 12) + std::string(36, '\0');
  ExpectError(Image().Put64(kIncompatible, 1 << 5).Extension(kExtFeatureNames, name),
              Code::kUnsupported, "'\\x1b]0;x\\x07%s%n'");
  // A table that is cut, or damage behind it, costs only the name.
  ExpectError(Image().Put64(kIncompatible, 1 << 5).Extension(kExtFeatureNames, name.substr(0, 47)),
              Code::kUnsupported, "bit 5");
  ExpectError(Image().Put64(kIncompatible, 1 << 5).Put32(112, 77).Put32(116, 0x7fffffff),
              Code::kUnsupported, "bit 5");
}

TEST(Header, KnownFeatures) {
  EXPECT_EQ(Parse(Image().Put64(kIncompatible, kDirty | kCorrupt)).incompatible, kDirty | kCorrupt);
  EXPECT_EQ(Parse(Image().Put64(kCompatible, ~uint64_t{0})).compatible, ~uint64_t{0});
  EXPECT_EQ(Parse(Image().Put64(kAutoclear, 0xf0)).autoclear, 0xf0u);
  Header header = Parse(Image().Put64(kIncompatible, kExtendedL2));
  EXPECT_EQ(header.subclusters(), 32u);
  EXPECT_EQ(header.subcluster_size(), 2048u);
  EXPECT_EQ(header.l2_entries(), 4096u);
  ExpectError(Image().Put64(kIncompatible, kExtendedL2).Put32(kClusterBits, 13).Put64(kSize, 8192),
              Code::kCorrupt, "extended L2");
  EXPECT_EQ(
      Parse(Image().Put64(kIncompatible, kExtendedL2).Put32(kClusterBits, 14)).subcluster_size(),
      512u);
}

TEST(Header, Compression) {
  EXPECT_EQ(Parse(Image().Put64(kIncompatible, kCompressionBit).Put8(kCompression, 1)).compression,
            kCompressionZstd);
  ExpectError(Image().Put64(kIncompatible, kCompressionBit), Code::kCorrupt, "compression");
  ExpectError(Image().Put8(kCompression, 1), Code::kCorrupt, "compression");
  ExpectError(Image().Put64(kIncompatible, kCompressionBit).Put8(kCompression, 2),
              Code::kUnsupported, "compression");
  ExpectError(Image().Put8(kCompression, 128), Code::kUnsupported, "compression");
  ExpectError(
      Image().Put64(kIncompatible, kCompressionBit).Put8(kCompression, 1).Put32(kHeaderLength, 104),
      Code::kCorrupt, "compression");
}

TEST(Header, BackingName) {
  Header header =
      Parse(Image().Put64(kBackingOffset, 0x200).Put32(kBackingSize, 4).Text(0x200, "base"));
  EXPECT_TRUE(header.has_backing);
  EXPECT_EQ(header.backing_name, "base");
  ExpectError(Image().Put64(kBackingOffset, 0x200).Put32(kBackingSize, 1024), Code::kCorrupt,
              "backing file name");
  ExpectError(Image().Put64(kBackingOffset, 0x200).Put32(kBackingSize, 0xffffffff), Code::kCorrupt,
              "backing file name");
  ExpectError(Image().Put64(kBackingOffset, 65535).Put32(kBackingSize, 2), Code::kCorrupt,
              "first cluster");
  ExpectError(Image().Put64(kBackingOffset, ~uint64_t{0}).Put32(kBackingSize, 2), Code::kCorrupt,
              "first cluster");
  ExpectError(Image().Put64(kBackingOffset, 111).Put32(kBackingSize, 2), Code::kCorrupt,
              "first cluster");
  // "Undefined if the image doesn't have a backing file."
  EXPECT_FALSE(Parse(Image().Put32(kBackingSize, 0xffffffff)).has_backing);
  EXPECT_FALSE(Parse(Image().Put64(kBackingOffset, 0x200)).has_backing);
  // QEMU 0.9: right after the header, no extensions.
  header = Parse(Image()
                     .Version2()
                     .Put64(kBackingOffset, 72)
                     .Put32(kBackingSize, 9)
                     .Text(72, "\xe2\x79\x2a\xca/base"));
  EXPECT_EQ(header.backing_name.substr(4), "/base");
  EXPECT_TRUE(header.backing_format.empty());
}

TEST(Header, Encryption) {
  EXPECT_EQ(Parse(Image().Put32(kCrypt, 1)).crypt_method, kCryptAes);
  ExpectError(Image().Put32(kCrypt, 3), Code::kUnsupported, "encryption method 3");
  ExpectError(Image().Put32(kCrypt, 0xffffffff), Code::kUnsupported, "encryption method");
  ExpectError(Image().Put32(kCrypt, 2), Code::kCorrupt, "no extension says");
  Header header = Parse(Image().Put32(kCrypt, 2).Extension(kExtCrypto, Bytes16(0x40000, 0x1f8000)));
  EXPECT_EQ(header.crypto->offset, 0x40000u);
  EXPECT_EQ(header.crypto->length, 0x1f8000u);
  auto luks = [](std::string_view data) {
    return Image().Put32(kCrypt, 2).Extension(kExtCrypto, data);
  };
  ExpectError(luks("four"), Code::kCorrupt, "4 bytes instead of 16");
  ExpectError(luks(Bytes16(0x40000, uint64_t{1} << 63)), Code::kCorrupt, "LUKS header of");
  ExpectError(luks(Bytes16(0x40000, 0)), Code::kCorrupt, "LUKS header of 0");
  ExpectError(luks(Bytes16(0x40001, 4096)), Code::kCorrupt, "multiple");
  ExpectError(luks(Bytes16(0, 4096)), Code::kCorrupt, "overlaps");
  ExpectError(luks(Bytes16(~uint64_t{0} << 16, 1 << 20)), Code::kCorrupt, "2^63");
  ExpectError(Image().Extension(kExtCrypto, Bytes16(0x40000, 4096)), Code::kCorrupt,
              "not encrypted with LUKS");
}

TEST(Header, DataFile) {
  Header header =
      Parse(Image().Put64(kIncompatible, kDataFile).Extension(kExtDataFile, "data.raw"));
  EXPECT_EQ(header.data_file_name, "data.raw");
  EXPECT_FALSE(header.data_file_raw());
  EXPECT_TRUE(Parse(Image().Put64(kIncompatible, kDataFile).Put64(kAutoclear, kDataFileRaw))
                  .data_file_raw());
  EXPECT_EQ(
      Parse(Image().Put64(kIncompatible, kDataFile).Extension(kExtDataFile, "")).data_file_name,
      "");
  ExpectError(Image().Put64(kAutoclear, kDataFileRaw), Code::kCorrupt, "raw external data");
  ExpectError(Image()
                  .Put64(kIncompatible, kDataFile)
                  .Put64(kAutoclear, kDataFileRaw)
                  .Put64(kBackingOffset, 0x200)
                  .Put32(kBackingSize, 4),
              Code::kCorrupt, "backing file with raw");
  ExpectError(Image()
                  .Put64(kIncompatible, kDataFile)
                  .Put32(kSnapshotCount, 1)
                  .Put64(kSnapshotsOffset, 0x40000),
              Code::kCorrupt, "internal snapshots");
}

TEST(Header, Bitmaps) {
  Header header = Parse(
      Image().Put64(kAutoclear, 1).Extension(kExtBitmaps, BitmapsExtension(2, 0, 64, 0x50000)));
  EXPECT_EQ(header.bitmaps->count, 2u);
  EXPECT_EQ(header.bitmaps->directory_size, 64u);
  EXPECT_EQ(header.bitmaps->directory_offset, 0x50000u);
  auto image = [](std::string_view data) {
    return Image().Put64(kAutoclear, 1).Extension(kExtBitmaps, data);
  };
  ExpectError(image(BitmapsExtension(0, 0, 64, 0x50000)), Code::kCorrupt, "0 bitmaps");
  ExpectError(image(BitmapsExtension(65536, 0, kMiB * 2, 0x50000)), Code::kCorrupt,
              "65536 bitmaps");
  ExpectError(image(BitmapsExtension(1, 1, 64, 0x50000)), Code::kCorrupt, "reserved");
  ExpectError(image(BitmapsExtension(1, 0, 23, 0x50000)), Code::kCorrupt, "directory of 23");
  ExpectError(image(BitmapsExtension(1, 0, 64 * kMiB + 8, 0x50000)), Code::kCorrupt,
              "directory of");
  ExpectError(image(BitmapsExtension(1, 0, 64, 0x50008)), Code::kCorrupt, "multiple");
  ExpectError(image(BitmapsExtension(1, 0, 64, 0)), Code::kCorrupt, "overlaps");
  ExpectError(image("short"), Code::kCorrupt, "5 bytes instead of 24");
}

TEST(Header, BitmapsWithoutTheirBitAreStale) {
  Header header = Parse(Image().Extension(kExtBitmaps, "nonsense by now"));
  EXPECT_FALSE(header.bitmaps.has_value());
  EXPECT_TRUE(header.stale_bitmaps);
  // And the bit without them says nothing.
  EXPECT_EQ(Parse(Image().Put64(kAutoclear, 1)).autoclear, 0u);
}

TEST(Header, Extensions) {
  Header header = Parse(
      Image().Extension(kExtBackingFormat, "raw").Extension(0xabcd, "xyz").Extension(0xabcd, ""));
  EXPECT_EQ(header.backing_format, "raw");
  ASSERT_EQ(header.unknown_extensions.size(), 2u);
  EXPECT_EQ(AsText(header.unknown_extensions[0].data), "xyz");
  ExpectError(Image().Put32(112, 0xabcd).Put32(116, 0x7fffffff), Code::kCorrupt, "extension area");
  ExpectError(Image().Put32(112, 0xabcd).Put32(116, 65536 - 119), Code::kCorrupt, "extension area");
  ExpectError(Image()
                  .Put32(112, 0xabcd)
                  .Put32(116, 0x81)
                  .Put64(kBackingOffset, 0xf8)
                  .Put32(kBackingSize, 4),
              Code::kCorrupt, "extension area");
  EXPECT_EQ(
      Parse(Image().Put32(112, 0xabcd).Put32(116, 65536 - 120)).unknown_extensions[0].data.size(),
      65416u);
  ExpectError(Image().Extension(kExtBackingFormat, "raw").Extension(kExtBackingFormat, "qcow2"),
              Code::kCorrupt, "one already");
  ExpectError(Image().Extension(kExtBackingFormat, "sixteen letters!"), Code::kCorrupt, "16 bytes");
  // Fewer than eight bytes before the backing name are no extension.
  EXPECT_TRUE(
      Parse(Image().Put64(kBackingOffset, 116).Put32(kBackingSize, 4)).unknown_extensions.empty());
}

TEST(Header, Layout) {
  EXPECT_TRUE(CheckLayout(Parse(Image())).has_value());
  ExpectError(CheckLayout(Parse(Image().Put64(kRtOffset, 0x30000))), Code::kCorrupt, "overlap");
  ExpectError(CheckLayout(Parse(Image().Put32(kRtClusters, 3))), Code::kCorrupt,
              "refcount table at 0x10000 and L1");
  ExpectError(CheckLayout(Parse(Image().Put32(kSnapshotCount, 1).Put64(kSnapshotsOffset, 0x30000))),
              Code::kCorrupt, "overlap");
  ExpectError(
      CheckLayout(Parse(Image().Put32(kCrypt, 2).Extension(kExtCrypto, Bytes16(0x20000, 0x10001)))),
      Code::kCorrupt, "LUKS");
}

TEST(BuildHeader, RoundTripsEverything) {
  Header header;
  header.cluster_bits = 12;
  header.size = 1234567;
  header.l1_size = 3;
  header.l1_offset = 0x8000;
  header.refcount_table_offset = 0x1000;
  header.refcount_table_clusters = 2;
  header.compatible = kLazyRefcounts | uint64_t{1} << 40;
  header.autoclear = kBitmapsConsistent | 0x80;
  header.incompatible = kDirty | kDataFile | kCompressionBit;
  header.refcount_order = 2;
  header.compression = kCompressionZstd;
  header.has_backing = true;
  header.backing_name = "../base image.qcow2";
  header.backing_format = "qcow2";
  header.data_file_name = "data";
  header.crypt_method = kCryptLuks;
  header.crypto = Header::Crypto{0x10000, 4096};
  header.bitmaps = Header::Bitmaps{1, 32, 0x20000};
  header.unknown_extensions.push_back({0x1234, std::vector<std::byte>(5, std::byte{7})});
  header.unknown_fields = {std::byte{0}, std::byte{1}};
  auto built = BuildHeader(header);
  ASSERT_TRUE(built.has_value()) << built.error().text();
  EXPECT_EQ(built->size(), 4096u);
  auto again = ParseHeader(*built);
  ASSERT_TRUE(again.has_value()) << again.error().text();
  EXPECT_EQ(*again, header);
}

TEST(BuildHeader, Version2) {
  Header header = Parse(Image().Version2());
  header.has_backing = true;
  header.backing_name = "b";
  auto built = BuildHeader(header);
  ASSERT_TRUE(built.has_value());
  EXPECT_EQ(LoadAt<be64>(*built, kBackingOffset).value(), 80u);  // behind the end extension
  EXPECT_EQ(ParseHeader(*built).value(), header);
  EXPECT_EQ(LoadAt<be32>(*built, 72).value(), 0u);
}

TEST(BuildHeader, WritesTheFeatureNamesWhereThereIsRoom) {
  Header header = Parse(Image());
  auto built = BuildHeader(header);
  ASSERT_TRUE(built.has_value());
  EXPECT_EQ(LoadAt<be32>(*built, 112).value(), uint32_t{kExtFeatureNames});
  EXPECT_EQ(LoadAt<be32>(*built, 116).value(), 8 * sizeof(DiskFeatureName));
  header.cluster_bits = 9;
  header.size = 512;
  header.has_backing = true;
  header.backing_name = std::string(300, 'n');
  built = BuildHeader(header);
  ASSERT_TRUE(built.has_value());
  EXPECT_EQ(LoadAt<be32>(*built, 112).value(), 0u);
  EXPECT_EQ(ParseHeader(*built).value(), header);
}

TEST(BuildHeader, RefusesWhatDoesNotFit) {
  Header header = Parse(Image());
  header.cluster_bits = 9;
  header.size = 512;
  header.has_backing = true;
  header.backing_name = std::string(512 - 120, 'n');
  EXPECT_TRUE(BuildHeader(header).has_value());
  header.backing_name += 'n';
  ExpectError(BuildHeader(header), Code::kOutOfRange, "do not fit");
  header.backing_name.clear();
  ExpectError(BuildHeader(header), Code::kOutOfRange, "backing file name of 0");
  header.backing_name = std::string(1024, 'n');
  ExpectError(BuildHeader(header), Code::kOutOfRange, "1024");
}

}  // namespace
}  // namespace platter::qcow2
