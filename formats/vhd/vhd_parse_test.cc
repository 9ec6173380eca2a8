#include "formats/vhd/vhd_parse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "formats/foreign_names.h"

namespace platter::vhd {
namespace {

using namespace std::string_view_literals;

// Values that other programs wrote for these sizes.
TEST(Geometry, FollowsTheSpecification) {
  EXPECT_EQ(GeometryOf(10485760), (Geometry{301, 4, 17}));
  EXPECT_EQ(GeometryOf(41943040), (Geometry{963, 5, 17}));
  EXPECT_EQ(GeometryOf(104857600), (Geometry{1003, 12, 17}));
  EXPECT_EQ(GeometryOf(1073741824), (Geometry{2080, 16, 63}));
  EXPECT_EQ(GeometryOf(136365211648), (Geometry{65278, 16, 255}));
  EXPECT_EQ(GeometryOf(2040 * kGiB), (Geometry{65535, 16, 255}));
  EXPECT_EQ(GeometryOf(0).bytes(), 0u);
  for (uint64_t size = 0; size < 600 * kGiB; size = size * 3 / 2 + 512) {
    EXPECT_LE(GeometryOf(size).bytes(), size);
  }
}

Footer SomeFooter() {
  Footer footer;
  footer.creator = "plat";
  footer.host_os = "Wi2k";
  footer.current_size = footer.original_size = 10485760;
  footer.geometry = GeometryOf(10485760);
  footer.timestamp = 12345;
  footer.id[3] = std::byte{7};
  footer.reserved[0] = 9;
  return footer;
}

std::vector<std::byte> BytesOf(const DiskFooter& disk) {
  ConstBytes bytes = AsBytes(disk);
  return {bytes.begin(), bytes.end()};
}

TEST(Footer, ComesBackAsItWas) {
  const DiskFooter disk = EncodeFooter(SomeFooter());
  auto parsed = ParseFooter(AsBytes(disk));
  ASSERT_TRUE(parsed) << parsed.error().text();
  EXPECT_EQ(parsed->creator, "plat");
  EXPECT_EQ(parsed->reserved[0], 9);
  EXPECT_EQ(BytesOf(EncodeFooter(*parsed)), BytesOf(disk));
}

TEST(Footer, OfOneByteLess) {
  const DiskFooter disk = EncodeFooter(SomeFooter());
  auto parsed = ParseFooter(AsBytes(disk).first(kShortFooter));
  ASSERT_TRUE(parsed) << parsed.error().text();
  EXPECT_EQ(parsed->current_size, 10485760u);
}

TEST(Footer, EachByteCounts) {
  const std::vector<std::byte> good = BytesOf(EncodeFooter(SomeFooter()));
  for (size_t at = 0; at < good.size(); ++at) {
    std::vector<std::byte> bad = good;
    bad[at] ^= std::byte{1};
    auto parsed = ParseFooter(bad);
    ASSERT_FALSE(parsed) << at;
    EXPECT_EQ(parsed.error().code(), Code::kCorrupt);
  }
  EXPECT_FALSE(ParseFooter({}));
}

TEST(Footer, OfUnknownKinds) {
  for (uint32_t type : {0u, 1u, 5u, 6u, 0xffffffffu}) {
    Footer footer = SomeFooter();
    footer.type = static_cast<DiskType>(type);
    const DiskFooter disk = EncodeFooter(footer);
    auto parsed = ParseFooter(AsBytes(disk));
    ASSERT_FALSE(parsed);
    EXPECT_EQ(parsed.error().code(), Code::kUnsupported);
  }
  DiskFooter disk = EncodeFooter(SomeFooter());
  disk.version = 0x00020000;
  disk.checksum = ChecksumOf(AsBytes(disk), offsetof(DiskFooter, checksum));
  EXPECT_FALSE(ParseFooter(AsBytes(disk)));
}

TEST(Size, ByCreator) {
  Footer footer = SomeFooter();  // its geometry has 10479616 bytes
  for (std::string_view creator : {"win "sv, "qem2"sv, "d2v "sv, "tap\0"sv, "CTXS"sv, "wa\0\0"sv,
                                   "vbox"sv, "plat"sv, "xo  "sv}) {
    footer.creator = creator;
    EXPECT_EQ(ChooseSize(footer, {}).bytes, 10485760u) << creator;
    EXPECT_FALSE(ChooseSize(footer, {}).from_geometry);
  }
  for (std::string_view creator : {"vpc "sv, "vs  "sv, "qemu"sv}) {
    footer.creator = creator;
    EXPECT_EQ(ChooseSize(footer, {}).bytes, 10479616u) << creator;
    EXPECT_TRUE(ChooseSize(footer, {}).from_geometry);
    EXPECT_EQ(ChooseSize(footer, false).bytes, 10485760u);
  }
  footer.creator = "win ";
  EXPECT_EQ(ChooseSize(footer, true).bytes, 10479616u);
}

TEST(Size, WhereTheGeometrySaysNothing) {
  Footer footer = SomeFooter();
  footer.creator = "vpc ";
  for (Geometry geometry :
       {Geometry{0, 0, 0}, Geometry{65535, 16, 255}, Geometry{65535, 255, 255}}) {
    footer.geometry = geometry;
    EXPECT_EQ(ChooseSize(footer, {}).bytes, 10485760u);
  }
}

DiskHeader SomeHeader() {
  DiskHeader disk{};
  std::memcpy(disk.cookie, kHeaderCookie, sizeof disk.cookie);
  disk.data_offset = kNoOffset;
  disk.table_offset = 1536;
  disk.version = kVersion;
  disk.table_entries = 5;
  disk.block_size = 2u << 20;
  std::vector<std::byte> name = ToUtf16("base.vhd", std::endian::big);
  std::memcpy(disk.parent_name, name.data(), name.size());
  std::memcpy(disk.locators[2].code, "W2ru", 4);
  disk.locators[2].length = 18;
  disk.locators[2].offset = 4096;
  SealHeader(disk);
  return disk;
}

TEST(Header, IsRead) {
  auto header = ParseHeader(AsBytes(SomeHeader()));
  ASSERT_TRUE(header) << header.error().text();
  EXPECT_EQ(header->parent_name, "base.vhd");
  EXPECT_EQ(header->bitmap_size(), 512u);
  EXPECT_EQ(header->table(), (Range{1536, 512}));
  ASSERT_EQ(header->locators.size(), 1u);
  EXPECT_EQ(header->locators[0].code, "W2ru");
  EXPECT_EQ(header->locators[0].data, (Range{4096, 18}));
}

TEST(Header, IsRefusedWhereItIsWrong) {
  EXPECT_FALSE(ParseHeader(AsBytes(SomeHeader()).first(1023)));
  auto refused = [](auto change) {
    DiskHeader disk = SomeHeader();
    change(disk);
    SealHeader(disk);
    return !ParseHeader(AsBytes(disk));
  };
  for (uint32_t size : {0u, 511u, 512u, 2048u, 4097u, 6u << 20, 512u << 20, 0x80000000u, ~0u}) {
    EXPECT_TRUE(refused([&](DiskHeader& disk) { disk.block_size = size; })) << size;
  }
  EXPECT_TRUE(refused([](DiskHeader& disk) { disk.table_offset = 1000; }));
  EXPECT_TRUE(refused([](DiskHeader& disk) { disk.table_offset = ~uint64_t{0} & ~uint64_t{511}; }));
  EXPECT_TRUE(refused([](DiskHeader& disk) { disk.version = 0x00020000; }));
  EXPECT_TRUE(refused([](DiskHeader& disk) { disk.cookie[0] = 'C'; }));
  DiskHeader unsealed = SomeHeader();
  unsealed.table_entries = 6;
  EXPECT_FALSE(ParseHeader(AsBytes(unsealed)));
}

TEST(Locator, Paths) {
  auto wide = [](std::string_view text) { return ToUtf16(text, std::endian::little); };
  EXPECT_EQ(PathOfLocator("W2ru", wide(".\\vm\\base.vhd")), "./vm/base.vhd");
  EXPECT_EQ(PathOfLocator("W2ku", wide("C:\\vm\\base.vhd")), std::nullopt);
  EXPECT_EQ(PathOfLocator("W2ru", wide("")), std::nullopt);
  EXPECT_EQ(PathOfLocator("Wi2r", AsBytes("..\\base.vhd"sv)), "../base.vhd");
  EXPECT_EQ(PathOfLocator("Wi2k", AsBytes("base.vhd\0junk"sv)), "base.vhd");
  EXPECT_EQ(PathOfLocator("MacX", AsBytes("file://./a%20b.vhd"sv)), "./a b.vhd");
  EXPECT_EQ(PathOfLocator("MacX", AsBytes("file:///vm/b.vhd"sv)), "/vm/b.vhd");
  EXPECT_EQ(PathOfLocator("MacX", AsBytes("file://localhost/vm/b%2"sv)), "/vm/b%2");
  EXPECT_EQ(PathOfLocator("MacX", AsBytes("http://x/b"sv)), std::nullopt);
  EXPECT_EQ(PathOfLocator("MacX", AsBytes("file://"sv)), std::nullopt);
  EXPECT_EQ(PathOfLocator("Mac ", AsBytes("alias"sv)), std::nullopt);
}

TEST(Batmap, IsReadIfItIsLongEnough) {
  DiskBatmap disk{};
  std::memcpy(disk.cookie, kBatmapCookie, sizeof disk.cookie);
  disk.offset = 2560;
  disk.sectors = 1;
  disk.checksum = 5;
  auto batmap = ParseBatmap(AsBytes(disk), 4096);
  ASSERT_TRUE(batmap);
  EXPECT_EQ(batmap->map, (Range{2560, 512}));
  EXPECT_FALSE(ParseBatmap(AsBytes(disk), 4097));
  disk.offset = ~uint64_t{0};
  EXPECT_FALSE(ParseBatmap(AsBytes(disk), 1));
  EXPECT_FALSE(ParseBatmap(AsBytes(disk).first(20), 1));
}

TEST(Bits, RunsAgainstOneBitAtATime) {
  std::vector<std::byte> bits(8);
  for (uint64_t first = 0; first < 64; ++first) {
    for (uint64_t end = first + 1; end <= 64; ++end) {
      std::ranges::fill(bits, std::byte{0});
      SetBits(bits, first, end, true);
      for (uint64_t at = 0; at < 64; ++at) {
        bool inside = at >= first && at < end;
        ASSERT_EQ(BitAt(bits, at), inside);
        ASSERT_EQ(RunOfBits(bits, at, 64), (inside ? end : at < first ? first : 64) - at);
      }
      SetBits(bits, first, end, false);
      ASSERT_TRUE(IsZero(bits));
    }
  }
}

}  // namespace
}  // namespace platter::vhd
