// L1 and L2 entries, snapshots, the bitmap directory, refcounts of every width.
#include "formats/qcow2/qcow2_parse.h"

#include <gtest/gtest.h>

#include <random>

namespace platter::qcow2 {
namespace {

template <class T>
void ExpectCorrupt(const Result<T>& result, std::string_view part) {
  ASSERT_FALSE(result.has_value()) << "expected an error with: " << part;
  EXPECT_EQ(result.error().code(), Code::kCorrupt) << result.error().text();
  EXPECT_NE(result.error().text().find(part), std::string::npos) << result.error().text();
}

Header Standard() {
  Header header;
  header.size = kGiB;
  header.l1_size = 2;
  return header;
}

Header Extended() {
  Header header = Standard();
  header.incompatible = kExtendedL2;
  return header;
}

Header External() {
  Header header = Standard();
  header.incompatible = kDataFile;
  return header;
}

Cluster Decode(const Header& header, uint64_t descriptor, uint64_t bitmap = 0,
               uint64_t guest = 0x50000) {
  auto cluster = DecodeL2(header, {descriptor, bitmap}, guest);
  EXPECT_TRUE(cluster.has_value()) << cluster.error().text();
  return cluster.value_or(Cluster());
}

TEST(L1, Entry) {
  EXPECT_EQ(DecodeL1(Standard(), 0, 0).value(), 0u);
  EXPECT_EQ(DecodeL1(Standard(), kCopied | 0x40000, 0).value(), 0x40000u);
  EXPECT_EQ(DecodeL1(Standard(), 0x00ffffffffff0000, 0).value(), 0x00ffffffffff0000u);
  ExpectCorrupt(DecodeL1(Standard(), kCopied | 0x40200, 7), "L1 entry 7");
  ExpectCorrupt(DecodeL1(Standard(), 0x40001, 0), "reserved");
  ExpectCorrupt(DecodeL1(Standard(), uint64_t{1} << 62, 0), "reserved");
  ExpectCorrupt(DecodeL1(Standard(), uint64_t{1} << 56, 0), "reserved");
}

TEST(L2, Standard) {
  Cluster cluster = Decode(Standard(), 0);
  EXPECT_EQ(cluster.kind, ClusterKind::kUnallocated);
  EXPECT_EQ(cluster.allocated | cluster.zero, 0u);
  cluster = Decode(Standard(), kCopied | 0x70000);
  EXPECT_EQ(cluster.kind, ClusterKind::kNormal);
  EXPECT_TRUE(cluster.copied);
  EXPECT_EQ(cluster.host, 0x70000u);
  EXPECT_EQ(cluster.allocated, ~0u);
  EXPECT_FALSE(Decode(Standard(), 0x70000).copied);
  cluster = Decode(Standard(), kZeroFlag);
  EXPECT_EQ(cluster.kind, ClusterKind::kZeroPlain);
  EXPECT_EQ(cluster.zero, ~0u);
  cluster = Decode(Standard(), kCopied | 0x70000 | kZeroFlag);
  EXPECT_EQ(cluster.kind, ClusterKind::kZeroAllocated);
  EXPECT_EQ(cluster.host, 0x70000u);
  EXPECT_EQ(cluster.allocated, 0u);
  // Offset 0 is no place in the image itself.
  cluster = Decode(Standard(), kCopied);
  EXPECT_EQ(cluster.kind, ClusterKind::kUnallocated);
  EXPECT_FALSE(cluster.copied);
}

TEST(L2, ReservedBits) {
  for (uint32_t bit : {1, 2, 3, 4, 5, 6, 7, 8, 56, 57, 58, 59, 60, 61}) {
    ExpectCorrupt(DecodeL2(Standard(), {0x70000 | uint64_t{1} << bit, 0}, 0), "reserved");
  }
  ExpectCorrupt(DecodeL2(Standard(), {0x70200, 0}, 0), "not aligned");
  Header v2 = Standard();
  v2.version = 2;
  ExpectCorrupt(DecodeL2(v2, {kCopied | 0x70000 | kZeroFlag, 0}, 0x123450000), "0x123450000");
  ExpectCorrupt(DecodeL2(Extended(), {kCopied | 0x70000 | kZeroFlag, 0}, 0), "reserved");
}

TEST(L2, ExternalDataFile) {
  Cluster cluster = Decode(External(), kCopied | 0x50000);
  EXPECT_EQ(cluster.kind, ClusterKind::kNormal);
  cluster = Decode(External(), kCopied, 0, 0);
  EXPECT_EQ(cluster.kind, ClusterKind::kNormal);
  EXPECT_TRUE(cluster.copied);
  EXPECT_EQ(Decode(External(), 0, 0, 0).kind, ClusterKind::kUnallocated);
  EXPECT_EQ(Decode(External(), kCopied | kZeroFlag, 0, 0).kind, ClusterKind::kZeroAllocated);
  EXPECT_EQ(Decode(External(), kZeroFlag, 0, 0).kind, ClusterKind::kZeroPlain);
  ExpectCorrupt(DecodeL2(External(), {kCopied | 0x60000, 0}, 0x50000), "external data file");
  ExpectCorrupt(DecodeL2(External(), {kCopied, 0}, 0x50000), "external data file");
  ExpectCorrupt(DecodeL2(External(), {kCompressed | 0x50000, 0}, 0x50000), "external data file");
}

TEST(L2, Subclusters) {
  constexpr uint64_t kAll = 0xffffffff;
  Cluster cluster = Decode(Extended(), kCopied | 0x70000, 0x5 | uint64_t{0xa} << 32);
  EXPECT_EQ(cluster.kind, ClusterKind::kNormal);
  EXPECT_EQ(cluster.allocated, 5u);
  EXPECT_EQ(cluster.zero, 10u);
  EXPECT_EQ(Decode(Extended(), 0x70000, 0).kind, ClusterKind::kNormal);
  EXPECT_EQ(Decode(Extended(), 0x70000, kAll << 32).kind, ClusterKind::kZeroAllocated);
  EXPECT_EQ(Decode(Extended(), 0, kAll << 32).kind, ClusterKind::kZeroPlain);
  cluster = Decode(Extended(), 0, uint64_t{1} << 63);
  EXPECT_EQ(cluster.kind, ClusterKind::kUnallocated);
  EXPECT_EQ(cluster.zero, 1u << 31);
  ExpectCorrupt(DecodeL2(Extended(), {0x70000, 1 | uint64_t{1} << 32}, 0), "both");
  ExpectCorrupt(DecodeL2(Extended(), {0, 1}, 0), "allocated in no cluster");
  ExpectCorrupt(DecodeL2(Extended(), {kCompressed | 0x50000, 1}, 0), "subcluster bitmap");
  EXPECT_EQ(Decode(Extended(), kCompressed | 0x50000, 0).kind, ClusterKind::kCompressedUnit);
}

TEST(L2, Compressed) {
  // 64 KiB clusters: the host offset takes bits 0-53, the sectors 54-61.
  Cluster cluster = Decode(Standard(), kCompressed | 0x50123);
  EXPECT_EQ(cluster.kind, ClusterKind::kCompressedUnit);
  EXPECT_EQ(cluster.host, 0x50123u);
  EXPECT_EQ(cluster.length, 512u - 0x123);
  EXPECT_FALSE(cluster.copied);
  cluster = Decode(Standard(), kCompressed | uint64_t{255} << 54 | 0x50000);
  EXPECT_EQ(cluster.length, 256u * 512);
  EXPECT_FALSE(Decode(Standard(), kCopied | kCompressed | 0x50000).copied);
  ExpectCorrupt(DecodeL2(Standard(), {kCompressed | 0x4000, 0}, 0), "inside the header");
  // Small clusters leave more bits than an offset may use.
  Header small = Standard();
  small.cluster_bits = 9;
  ExpectCorrupt(DecodeL2(small, {kCompressed | uint64_t{1} << 56, 0}, 0),
                "past what the format can name");
  EXPECT_EQ(Decode(small, kCompressed | uint64_t{1} << 55).host, uint64_t{1} << 55);
}

TEST(L2, EncodeCompressedRoundTrips) {
  std::mt19937_64 random(1);
  for (uint32_t bits = kMinClusterBits; bits <= kMaxClusterBits; ++bits) {
    Header header = Standard();
    header.cluster_bits = bits;
    uint64_t limit = CompressedHostLimit(header);
    EXPECT_EQ(limit, uint64_t{1} << std::min(56u, 70 - bits));
    for (int i = 0; i < 200; ++i) {
      uint32_t length = static_cast<uint32_t>(1 + random() % header.cluster_size());
      uint64_t host =
          i == 0 ? limit - length
                 : header.cluster_size() + random() % (limit - length - header.cluster_size());
      L2Entry entry = EncodeCompressed(header, host, length);
      auto cluster = DecodeL2(header, entry, 0);
      ASSERT_TRUE(cluster.has_value()) << cluster.error().text();
      ASSERT_EQ(cluster->kind, ClusterKind::kCompressedUnit);
      ASSERT_EQ(cluster->host, host);
      ASSERT_GE(cluster->length, length);
      ASSERT_LT(cluster->length, length + 512);
      ASSERT_EQ((cluster->host + cluster->length) % 512, 0u);
    }
  }
}

// A table of variable entries under construction.
struct Table {
  std::string bytes;
  template <class T>
  Table& Put(const T& value) {
    bytes += AsText(AsBytes(value));
    return *this;
  }
  Table& Put(const char* text) { return Put(std::string(text)); }
  Table& Put(const std::string& text) {
    bytes += text;
    return *this;
  }
  Table& Align() {
    bytes.resize(RoundUp(bytes.size(), 8));
    return *this;
  }
  ConstBytes view() const { return AsBytes(std::string_view(bytes)); }
};

DiskSnapshot SnapshotEntry(uint32_t extra, std::string_view id, std::string_view name) {
  DiskSnapshot disk = {};
  disk.l1_table_offset = 0x80000;
  disk.l1_size = 2;
  disk.id_length = static_cast<uint16_t>(id.size());
  disk.name_length = static_cast<uint16_t>(name.size());
  disk.date_seconds = 1000;
  disk.date_nanoseconds = 5;
  disk.vm_clock_nanoseconds = 77;
  disk.vm_state_size = 33;
  disk.extra_size = extra;
  return disk;
}

DiskSnapshotExtra ExtraFields(uint64_t vm_state, uint64_t disk_size, uint64_t icount) {
  DiskSnapshotExtra extra = {};
  extra.vm_state_size = vm_state;
  extra.disk_size = disk_size;
  extra.icount = icount;
  return extra;
}

TEST(Snapshots, FieldsAndExtraData) {
  Table table;
  table.Put(SnapshotEntry(24, "1", "first"))
      .Put(ExtraFields(uint64_t{1} << 33, kMiB, 9))
      .Put("1first")
      .Align();
  table.Put(SnapshotEntry(28, "2", "s"))
      .Put(ExtraFields(0, kGiB, ~uint64_t{0}))
      .Put("more2s")
      .Align();
  table.Put(SnapshotEntry(0, "3", "old")).Put("3old").Align();
  uint64_t used_wanted = table.bytes.size();
  table.Put("what follows the table");
  Header header = Standard();
  header.snapshot_count = 3;
  uint64_t used = 0;
  auto snapshots = ParseSnapshots(header, table.view(), &used);
  ASSERT_TRUE(snapshots.has_value()) << snapshots.error().text();
  EXPECT_EQ(used, used_wanted);
  const Snapshot& first = (*snapshots)[0];
  EXPECT_EQ(first.info.id, "1");
  EXPECT_EQ(first.info.name, "first");
  EXPECT_EQ(first.info.disk_size, kMiB);
  EXPECT_EQ(first.info.vm_state_size, uint64_t{1} << 33);
  EXPECT_EQ(first.info.date_seconds, 1000u);
  EXPECT_EQ(first.info.date_nanoseconds, 5u);
  EXPECT_EQ(first.info.vm_clock_nanoseconds, 77u);
  EXPECT_EQ(first.info.icount, 9u);
  EXPECT_EQ(first.l1_offset, 0x80000u);
  EXPECT_EQ(first.l1_size, 2u);
  EXPECT_EQ((*snapshots)[1].extra.size(), 28u);
  EXPECT_FALSE((*snapshots)[1].info.icount.has_value());
  // Before there was extra data: the 32-bit state size and the disk's size of now.
  EXPECT_EQ((*snapshots)[2].info.vm_state_size, 33u);
  EXPECT_EQ((*snapshots)[2].info.disk_size, kGiB);
}

TEST(Snapshots, SizeNotRecordedAndDiskGrown) {
  Table table;
  table.Put(SnapshotEntry(0, "1", "old")).Put("1old").Align();
  Header header = Standard();
  header.size = 4 * kGiB;
  header.l1_size = 8;
  header.snapshot_count = 1;
  EXPECT_EQ(ParseSnapshots(header, table.view(), nullptr).value()[0].info.disk_size, kGiB);
}

TEST(Snapshots, Damage) {
  Header header = Standard();
  header.snapshot_count = 1;
  Table table;
  table.Put(SnapshotEntry(16, "1", "name")).Put(ExtraFields(0, kGiB, 0)).Put("1name");
  table.bytes.erase(40 + 16, 8);  // extra data of 16 bytes
  ASSERT_TRUE(ParseSnapshots(header, table.view(), nullptr).has_value());
  // Cut anywhere it is an error, never a read past the end.
  for (size_t size = 0; size < table.bytes.size(); ++size) {
    ExpectCorrupt(ParseSnapshots(header, table.view().first(size), nullptr), "ends inside entry 0");
  }
  auto damaged = [&](size_t offset, auto value) {
    Table copy = table;
    StoreAt(Bytes(std::as_writable_bytes(std::span(copy.bytes))), offset, value);
    return ParseSnapshots(header, copy.view(), nullptr);
  };
  ExpectCorrupt(damaged(36, be32(0xffffffff)), "ends inside");
  ExpectCorrupt(damaged(14, be16(0xffff)), "ends inside");
  ExpectCorrupt(damaged(0, be64(0x80001)), "snapshot 0 ('name'): L1 table at 0x80001");
  ExpectCorrupt(damaged(0, be64(0xffffffffffff0000)), "L1 table at");
  ExpectCorrupt(damaged(0, be64(0)), "L1 table at");
  ExpectCorrupt(damaged(8, be32(1)), "too small");
  ExpectCorrupt(damaged(48, be64(~uint64_t{0})), "too small");
  auto many = damaged(8, be32(0xffffffff));
  ASSERT_FALSE(many.has_value());
  EXPECT_EQ(many.error().code(), Code::kUnsupported);
}

DiskBitmapEntry BitmapEntry(std::string_view name) {
  DiskBitmapEntry disk = {};
  disk.table_offset = 0x90000;
  disk.table_size = 1;
  disk.type = 1;
  disk.granularity_bits = 16;
  disk.name_length = static_cast<uint16_t>(name.size());
  return disk;
}

Result<std::vector<Bitmap>> ParseTable(const Table& table, uint32_t count) {
  Header header = Standard();
  header.bitmaps = Header::Bitmaps{count, table.bytes.size(), 0xa0000};
  return ParseBitmaps(header, table.view());
}

TEST(Bitmaps, Fields) {
  Table table;
  DiskBitmapEntry entry = BitmapEntry("abc");
  entry.flags = kBitmapAuto | kBitmapExtraCompatible;
  entry.extra_length = 3;
  table.Put(entry).Put("xxxabc").Align();
  entry = BitmapEntry("d");
  entry.flags = kBitmapInUse;
  entry.table_size = 0;
  entry.granularity_bits = 9;
  table.Put(entry).Put("d").Align();
  auto bitmaps = ParseTable(table, 2);
  ASSERT_TRUE(bitmaps.has_value()) << bitmaps.error().text();
  const Bitmap& first = (*bitmaps)[0];
  EXPECT_EQ(first.info.name, "abc");
  EXPECT_EQ(first.info.granularity, 65536u);
  EXPECT_TRUE(first.info.enabled);
  EXPECT_FALSE(first.info.in_use);
  EXPECT_EQ(first.extra.size(), 3u);
  EXPECT_EQ(first.table_offset, 0x90000u);
  EXPECT_EQ(first.table_size, 1u);
  EXPECT_TRUE((*bitmaps)[1].info.in_use);
  EXPECT_EQ((*bitmaps)[1].granularity_bits, 9);
  EXPECT_TRUE(ParseBitmaps(Standard(), {}).value().empty());
}

TEST(Bitmaps, Damage) {
  auto with = [](auto change) {
    DiskBitmapEntry entry = BitmapEntry("b0");
    change(entry);
    return ParseTable(Table().Put(entry).Put("b0").Align(), 1);
  };
  ASSERT_TRUE(with([](auto&) {}).has_value());
  ExpectCorrupt(with([](auto& e) { e.flags = 8; }), "bitmap 0 ('b0");
  ExpectCorrupt(with([](auto& e) { e.table_offset = 0x90001; }), "table at");
  ExpectCorrupt(with([](auto& e) { e.table_offset = 0; }), "table at");
  ExpectCorrupt(with([](auto& e) { e.table_offset = ~uint64_t{0xffff}; }), "table at");
  ExpectCorrupt(with([](auto& e) { e.table_size = 0; }), "too small");
  ExpectCorrupt(with([](auto& e) { e.name_length = 0; }), "name of 0");
  ExpectCorrupt(with([](auto& e) { e.name_length = 0xffff; }), "ends inside");
  ExpectCorrupt(with([](auto& e) { e.extra_length = 0xffffffff; }), "ends inside");
  for (uint8_t granularity : {0, 8, 32, 63, 255}) {
    EXPECT_EQ(with([&](auto& e) { e.granularity_bits = granularity; }).error().code(),
              Code::kUnsupported);
  }
  EXPECT_EQ(with([](auto& e) { e.type = 2; }).error().code(), Code::kUnsupported);
  EXPECT_EQ(with([](auto& e) { e.table_size = 8193; }).error().code(), Code::kUnsupported);
  Table twice;
  twice.Put(BitmapEntry("b0")).Put("b0").Align().Put(BitmapEntry("b0")).Put("b0").Align();
  ExpectCorrupt(ParseTable(twice, 2), "same name");
  ExpectCorrupt(ParseTable(twice, 1), "bytes of entries");
  ExpectCorrupt(ParseTable(Table().Put(BitmapEntry("b0")).Put("b0").Align(), 2), "inside entry 1");
  Header header = Standard();
  header.bitmaps = Header::Bitmaps{2, twice.bytes.size(), 0xa0000};
  ExpectCorrupt(ParseBitmaps(header, twice.view().first(twice.bytes.size() - 1)), "cut short");
}

TEST(Refcounts, EveryWidth) {
  std::mt19937_64 random(2);
  for (uint32_t order = 0; order <= 6; ++order) {
    uint32_t bits = 1u << order;
    uint64_t mask = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
    std::vector<std::byte> block(512);
    std::vector<uint64_t> model(512 * 8 / bits);
    for (int i = 0; i < 5000; ++i) {
      uint64_t index = random() % model.size(), value = random() & mask;
      model[index] = value;
      StoreRefcount(block, order, index, value);
    }
    for (uint64_t i = 0; i < model.size(); ++i)
      ASSERT_EQ(LoadRefcount(block, order, i), model[i]) << order;
  }
}

TEST(Refcounts, LayoutOnDisk) {
  std::vector<std::byte> block(512);
  StoreRefcount(block, 0, 3, 1);
  StoreRefcount(block, 0, 9, 1);
  EXPECT_EQ(block[0], std::byte{8});
  EXPECT_EQ(block[1], std::byte{2});
  StoreRefcount(block, 1, 6, 3);
  EXPECT_EQ(block[1], std::byte{0x32});
  StoreRefcount(block, 2, 5, 0xa);
  EXPECT_EQ(block[2], std::byte{0xa0});
  StoreRefcount(block, 4, 4, 0x1234);
  EXPECT_EQ(block[8], std::byte{0x12});
  EXPECT_EQ(block[9], std::byte{0x34});
}

}  // namespace
}  // namespace platter::qcow2
