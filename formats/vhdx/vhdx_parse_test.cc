// What is built is parsed as the same, and what contradicts the format is refused by name.
#include "formats/vhdx/vhdx_parse.h"

#include <gtest/gtest.h>

#include "base/endian.h"
#include "formats/vhdx/vhdx_disk.h"

namespace platter::vhdx {
namespace {

TEST(VhdxParse, Ids) {
  EXPECT_EQ(GuidText(kBatRegion), "2dc27766-f623-4200-9d64-115e9bfd4a08");
  EXPECT_EQ(GuidText(kMetadataRegion), "8b7ca206-4790-4b9a-b8fe-575f050f886e");
  EXPECT_EQ(GuidText(kParentLocatorItem), "a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
}

TEST(VhdxParse, Headers) {
  Header header;
  header.sequence = 77;
  header.file_write.fill(std::byte{1});
  header.data_write.fill(std::byte{2});
  header.log = {kMiB, kMiB};
  std::vector<std::byte> bytes = BuildHeader(header);
  EXPECT_EQ(ParseHeader(bytes).value(), header);
  bytes[3000] = std::byte{1};
  EXPECT_FALSE(ParseHeader(bytes));
  auto code = [](Header header) { return CheckHeader(header, 8 * kMiB).error().code(); };
  EXPECT_TRUE(CheckHeader(header, 8 * kMiB));
  Header other = header;
  other.version = 2;
  EXPECT_EQ(code(other), Code::kUnsupported);
  other = header;
  other.log.offset = 512;
  EXPECT_EQ(code(other), Code::kCorrupt);
  other = header;
  other.log.offset = 64 * kMiB;
  EXPECT_TRUE(CheckHeader(other, 8 * kMiB));  // it is empty
  other.log_id.fill(std::byte{1});
  EXPECT_EQ(code(other), Code::kCorrupt);
}

TEST(VhdxParse, Regions) {
  const Range log{kMiB, kMiB};
  const std::vector<Region> good = {{kBatRegion, {3 * kMiB, kMiB}, true},
                                    {kMetadataRegion, {2 * kMiB, kMiB}, true}};
  auto error = [&](std::vector<Region> regions) {
    auto parsed = ParseRegions(BuildRegions(regions), log);
    return parsed ? std::string() : parsed.error().text();
  };
  EXPECT_EQ(error(good), "");
  EXPECT_EQ(ParseRegions(BuildRegions(good), log)->all, good);
  auto with = [&](Region region) {
    std::vector<Region> regions = good;
    regions.push_back(region);
    return error(regions);
  };
  ImageId unknown;
  unknown.fill(std::byte{0x11});
  EXPECT_EQ(with({unknown, {4 * kMiB, kMiB}, false}), "");
  EXPECT_NE(with({unknown, {4 * kMiB, kMiB}, true}).find("11111111-1111-"), std::string::npos);
  EXPECT_NE(with({unknown, {3 * kMiB, kMiB}, false}).find("overlap"), std::string::npos);
  EXPECT_NE(with({unknown, {kMiB, kMiB}, false}).find("the log"), std::string::npos);
  EXPECT_NE(with({kBatRegion, {4 * kMiB, kMiB}, true}).find("twice"), std::string::npos);
  EXPECT_NE(with({unknown, {4 * kMiB + 512, kMiB}, false}).find("aligned"), std::string::npos);
  EXPECT_NE(error({good[0]}).find("no metadata"), std::string::npos);
  EXPECT_NE(error({good[1]}).find("no BAT"), std::string::npos);
}

Metadata Sample() {
  Metadata metadata;
  metadata.block_size = 2 * kMiB;
  metadata.disk_size = 10 * kGiB;
  metadata.physical_sector = 4096;
  metadata.page83.fill(std::byte{5});
  metadata.has_parent = true;
  metadata.parent.entries = {{"parent_linkage", "{00112233-4455-6677-8899-AABBCCDDEEFF}"},
                             {"parent_linkage2", "{00000000-0000-0000-0000-000000000000}"},
                             {"relative_path", ".\\größe.vhdx"}};
  return metadata;
}

Result<Metadata> ParseRegion(const std::vector<std::byte>& region) {
  MetadataBytes bytes;
  for (const MetadataItem& item : TRY(ParseMetadataTable(region, kMiB))) {
    ConstBytes part = ConstBytes(region).subspan(item.place.offset, item.place.length);
    std::vector<std::byte> value(part.begin(), part.end());
    if (item.id == kFileParametersItem) bytes.file_parameters = value;
    if (item.id == kDiskSizeItem) bytes.disk_size = value;
    if (item.id == kPage83Item) bytes.page83 = value;
    if (item.id == kLogicalSectorItem) bytes.logical_sector = value;
    if (item.id == kPhysicalSectorItem) bytes.physical_sector = value;
    if (item.id == kParentLocatorItem) bytes.parent_locator = value;
  }
  return ParseMetadata(bytes);
}

TEST(VhdxParse, MetadataIsReadAsItWasBuilt) {
  const Metadata sample = Sample();
  auto parsed = ParseRegion(BuildMetadata(sample));
  ASSERT_TRUE(parsed) << parsed.error().text();
  EXPECT_EQ(parsed->block_size, sample.block_size);
  EXPECT_EQ(parsed->disk_size, sample.disk_size);
  EXPECT_EQ(parsed->physical_sector, 4096u);
  EXPECT_EQ(parsed->page83, sample.page83);
  EXPECT_EQ(parsed->parent.entries, sample.parent.entries);
  EXPECT_EQ(parsed->parent.linkages,
            std::vector<std::string>{"00112233-4455-6677-8899-aabbccddeeff"});
}

TEST(VhdxParse, RefusesMetadata) {
  auto error = [](auto change) {
    Metadata metadata = Sample();
    change(metadata);
    auto parsed = ParseRegion(BuildMetadata(metadata));
    return parsed ? std::string() : parsed.error().text();
  };
  EXPECT_EQ(error([](Metadata&) {}), "");
  EXPECT_NE(error([](Metadata& m) { m.block_size = 3 << 20; }), "");
  EXPECT_NE(error([](Metadata& m) { m.block_size = 512 << 20; }), "");
  EXPECT_NE(error([](Metadata& m) { m.logical_sector = 1024; }), "");
  EXPECT_NE(error([](Metadata& m) { m.disk_size = 65 * kTiB; }), "");
  EXPECT_NE(error([](Metadata& m) { m.disk_size = 513; }), "");
  EXPECT_NE(error([](Metadata& m) { m.parent.entries.erase(m.parent.entries.begin()); }), "");
  EXPECT_NE(error([](Metadata& m) { m.parent.entries[0].second = "{no id}"; }), "");
  std::vector<std::byte> region = BuildMetadata(Sample());
  StoreAt(Bytes(region), 32, ImageId{std::byte{0xab}});
  auto parsed = ParseRegion(region);
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().code(), Code::kUnsupported);
  EXPECT_NE(parsed.error().text().find("000000ab-0000"), std::string::npos);
}

TEST(VhdxParse, PlacesInTheBat) {
  Metadata metadata;
  metadata.block_size = 256 * kMiB;  // 16 blocks in a chunk
  metadata.disk_size = 40 * 256 * kMiB;
  EXPECT_EQ(metadata.chunk_ratio(), 16u);
  EXPECT_EQ(metadata.bat_entries(), 42u);
  EXPECT_EQ(metadata.PayloadIndex(15), 15u);
  EXPECT_EQ(metadata.BitmapIndex(15), 16u);
  EXPECT_EQ(metadata.PayloadIndex(16), 17u);
  EXPECT_EQ(metadata.BitmapIndex(39), 50u);
  metadata.has_parent = true;
  EXPECT_EQ(metadata.bat_entries(), 51u);
  metadata.logical_sector = 4096;
  EXPECT_EQ(metadata.chunk_ratio(), 128u);
  metadata.has_parent = false;
  metadata.disk_size = 0;
  EXPECT_EQ(metadata.bat_entries(), 0u);
}

TEST(VhdxParse, EntriesOfTheBat) {
  EXPECT_FALSE(ParsePayloadEntry(4, 0, true));
  EXPECT_FALSE(ParsePayloadEntry(5, 0, true));
  EXPECT_FALSE(ParsePayloadEntry(7 | kMiB, 0, false));
  const BatEntry entry = ParsePayloadEntry(7 | 5 * kMiB, 0, true).value();
  EXPECT_EQ(entry, (BatEntry{BlockState::kPartiallyPresent, 5 * kMiB}));
  EXPECT_EQ(EncodeEntry(entry), 7 | 5 * kMiB);
  EXPECT_FALSE(ParseBitmapEntry(7, 0));
  EXPECT_TRUE(ParseBitmapEntry(6 | kMiB, 0));
}

}  // namespace
}  // namespace platter::vhdx
