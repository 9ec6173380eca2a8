// What is particular to this layer: footers, discards, sizes, batmaps, parents.
#include "formats/vhd/vhd_layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "formats/vhd/vhd_check.h"
#include "formats/vhd/vhd_create.h"
#include "formats/vhd/vhd_subjects_testing.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"

namespace platter::vhd {
namespace {

constexpr uint64_t kBlock = 16384, kDisk = 20 * kBlock;

class VhdTest : public testing::Test {
 protected:
  void Create(bool parent = false) {
    Configuration configuration{"test", kDisk, kBlock, {{"block_size", "16K"}}, parent};
    auto created = CreateImage(configuration, store_);
    ASSERT_TRUE(created) << created.error().text();
  }
  std::unique_ptr<Layer> Open(bool writable = true) {
    auto layer = OpenImage(store_, writable);
    EXPECT_TRUE(layer) << layer.error().text();
    return layer.has_value() ? std::move(*layer) : nullptr;
  }
  void Put(Layer& layer, uint64_t at, uint64_t length, uint8_t value) {
    std::vector<std::byte> bytes(length, std::byte{value});
    auto written = Write(layer, at, ConstBytes(bytes));
    ASSERT_TRUE(written) << written.error().text();
  }
  // True if all of the range reads as `value`.
  bool Holds(Layer& layer, uint64_t at, uint64_t length, uint8_t value) {
    std::vector<std::byte> bytes(length);
    auto read = Read(layer, at, Bytes(bytes));
    EXPECT_TRUE(read) << read.error().text();
    return std::ranges::all_of(bytes, [&](std::byte b) { return b == std::byte{value}; });
  }
  Image Headers() {
    auto opened = ReadImage(store_, OpenOptions{});
    EXPECT_TRUE(opened) << opened.error().text();
    return opened.has_value() ? std::move(opened->image) : Image{};
  }
  uint64_t Size() { return *store_.Size(); }
  std::string FactOf(const Layer& layer, std::string_view name) {
    for (const Fact& fact : layer.info().facts) {
      if (fact.name != name) continue;
      if (auto* text = std::get_if<std::string>(&fact.value)) return *text;
    }
    return "";
  }
  void WriteEntry(uint64_t block, uint32_t sector) {
    const be32 entry(sector);
    ASSERT_TRUE(store_.Write(Headers().header.table_offset + block * 4, AsBytes(entry)));
  }

  MemoryStore store_;
};

TEST_F(VhdTest, OpeningToWriteChangesNothing) {
  Create();
  auto before = store_.Contents();
  auto layer = Open();
  ASSERT_TRUE(layer->Flush());
  EXPECT_TRUE(Holds(*layer, 0, kDisk, 0));
  layer.reset();
  EXPECT_EQ(store_.Contents(), before);
}

TEST_F(VhdTest, TheFooterFollowsTheLastBlock) {
  Create();
  const uint64_t empty = Size();
  auto layer = Open();
  Put(*layer, 3 * kBlock + 100, 10, 7);
  ASSERT_TRUE(layer->Flush());
  Image image = Headers();
  EXPECT_EQ(image.tail, Size() - kSector) << "after a flush";
  EXPECT_TRUE(image.copy_good);
  EXPECT_LT(Size(), empty + 2 * kBlock);
  Put(*layer, 5 * kBlock, kBlock, 8);
  layer.reset();
  EXPECT_EQ(Headers().tail, Size() - kSector);
  EXPECT_TRUE(Holds(*Open(false), 5 * kBlock, kBlock, 8));
  auto survey = ReadTable(store_, Headers());
  ASSERT_TRUE(survey);
  ASSERT_EQ(survey->units.size(), 2u);
  for (auto& unit : survey->units) {
    EXPECT_TRUE(IsAligned(unit.sector * kSector + 512, 4096)) << "data on 4 KiB";
  }
}

TEST_F(VhdTest, ANewBlockOfADynamicDiskIsAllThere) {
  Create();
  {
    auto layer = Open();
    Put(*layer, 3 * kBlock + 5000, 10, 7);
  }
  auto survey = ReadTable(store_, Headers());
  std::vector<std::byte> bitmap(512);
  ASSERT_TRUE(store_.Read(survey->units[0].sector * kSector, Bytes(bitmap)));
  EXPECT_EQ(RunOfBits(bitmap, 0, 512 * 8), kBlock / kSector);
  EXPECT_TRUE(BitAt(bitmap, 0));
}

TEST_F(VhdTest, ABlockOfADifferencingDiskHasWhatWasWritten) {
  Create(true);
  {
    auto layer = Open();
    Put(*layer, 3 * kBlock + 1000, 100, 7);  // sectors 1 and 2
    Put(*layer, 3 * kBlock + 4096, 512, 8);
  }
  auto layer = Open(false);
  std::vector<Extent> extents(8);
  auto count = layer->Map({3 * kBlock, kBlock}, extents);
  ASSERT_TRUE(count);
  ASSERT_EQ(*count, 5u);
  EXPECT_EQ(extents[0].kind, Kind::kParent);
  EXPECT_EQ(extents[1].guest, (Range{3 * kBlock + 512, 1024}));
  EXPECT_EQ(extents[1].kind, Kind::kData);
  EXPECT_EQ(extents[3].guest, (Range{3 * kBlock + 4096, 512}));
  EXPECT_EQ(extents[4].kind, Kind::kParent);
}

TEST_F(VhdTest, DiscardedSectorsShowTheParentAgain) {
  Create(true);
  auto layer = Open();
  Put(*layer, kBlock, kBlock, 7);
  auto dropped = layer->Discard({kBlock + 600, 5000}, Kind::kParent);
  ASSERT_TRUE(dropped);
  EXPECT_EQ(*dropped, (Range{kBlock + 1024, 4096 + 512 - 512}));
  Extent extent;
  ASSERT_TRUE(layer->Map({kBlock + 1024, 512}, std::span(&extent, 1)));
  EXPECT_EQ(extent.kind, Kind::kParent);
  dropped = layer->Discard({kBlock, kBlock}, Kind::kZero);
  ASSERT_TRUE(dropped);
  EXPECT_TRUE(dropped->empty()) << "it cannot say zeros";
  ASSERT_TRUE(layer->Discard({kBlock, kBlock}, Kind::kParent));
  layer.reset();
  EXPECT_TRUE(ReadTable(store_, Headers())->units.empty());
}

TEST_F(VhdTest, DiscardedBlocksAreUsedAgain) {
  Create();
  auto layer = Open();
  Put(*layer, 0, 10 * kBlock, 1);
  ASSERT_TRUE(layer->Flush());
  const uint64_t size = Size();
  auto dropped = layer->Discard({2 * kBlock, 4 * kBlock}, Kind::kHole);
  ASSERT_TRUE(dropped);
  EXPECT_EQ(*dropped, (Range{2 * kBlock, 4 * kBlock}));
  ASSERT_TRUE(layer->Flush());
  Put(*layer, 12 * kBlock + 100, 10, 2);
  EXPECT_TRUE(Holds(*layer, 12 * kBlock + 110, kBlock - 110, 0)) << "nothing of its former owner";
  ASSERT_TRUE(layer->Flush());
  EXPECT_EQ(Size(), size);
  // And in the next session.
  layer.reset();
  layer = Open();
  Put(*layer, 14 * kBlock, 3 * kBlock, 3);
  EXPECT_TRUE(Holds(*layer, 2 * kBlock, 4 * kBlock, 0));
  layer.reset();
  EXPECT_EQ(Size(), size);
  EXPECT_TRUE(*IsSound(store_));
}

TEST_F(VhdTest, FreeBlocksAtTheEndAreCutOff) {
  Create();
  const uint64_t empty = Size();
  auto layer = Open();
  Put(*layer, 0, 10 * kBlock, 1);
  ASSERT_TRUE(Discard(*layer, {0, 10 * kBlock}));
  layer.reset();
  EXPECT_LT(Size(), empty + 4096);
  EXPECT_EQ(Headers().tail, Size() - kSector);
}

TEST_F(VhdTest, PartsOfABlockBecomeZeros) {
  Create();
  auto layer = Open();
  Put(*layer, 0, kBlock, 1);
  ASSERT_TRUE(Zero(*layer, {700, 9000}, true));
  EXPECT_TRUE(Holds(*layer, 0, 700, 1));
  EXPECT_TRUE(Holds(*layer, 700, 9000, 0));
  EXPECT_TRUE(Holds(*layer, 9700, kBlock - 9700, 1));
}

TEST_F(VhdTest, TheCopyStandsInForTheFooter) {
  Create();
  Put(*Open(), 0, kBlock, 5);
  ASSERT_TRUE(store_.Resize(Size() - 300));
  auto layer = Open();
  EXPECT_NE(FactOf(*layer, "footer").find("copy at the start"), std::string::npos);
  EXPECT_TRUE(layer->info().dirty);
  EXPECT_TRUE(Holds(*layer, 0, kBlock, 5));
  Put(*layer, 2 * kBlock, 10, 6);
  layer.reset();
  EXPECT_EQ(Headers().tail, Size() - kSector) << "written anew";
  EXPECT_TRUE(Holds(*Open(), 2 * kBlock, 10, 6));
}

TEST_F(VhdTest, ADamagedCopyIsMendedBeforeItIsNeeded) {
  Create();
  std::vector<std::byte> rubbish(512, std::byte{1});
  ASSERT_TRUE(store_.Write(0, ConstBytes(rubbish)));
  auto layer = Open();
  EXPECT_NE(FactOf(*layer, "footer").find("damaged"), std::string::npos);
  Put(*layer, 0, 10, 6);
  EXPECT_TRUE(Headers().copy_good) << "already before the flush";
}

TEST_F(VhdTest, ShortFootersAreRead) {
  Configuration fixed{"fixed", kDisk, kBlock, {{"subformat", "fixed"}}};
  ASSERT_TRUE(CreateImage(fixed, store_));
  ASSERT_TRUE(store_.Resize(kDisk + kShortFooter));
  auto layer = Open();
  EXPECT_EQ(layer->info().size, kDisk);
  Put(*layer, kDisk - 10, 10, 3);
  layer.reset();
  EXPECT_TRUE(Holds(*Open(), kDisk - 10, 10, 3));
}

TEST_F(VhdTest, OverlappingBlocksAreReadAndNotWritten) {
  Create();
  Put(*Open(), 0, 2 * kBlock, 4);
  auto survey = ReadTable(store_, Headers());
  WriteEntry(5, survey->units[0].sector);
  auto layer = Open();
  EXPECT_TRUE(Holds(*layer, 5 * kBlock, kBlock, 4));
  std::vector<std::byte> bytes(10);
  auto written = Write(*layer, 0, ConstBytes(bytes));
  ASSERT_FALSE(written);
  EXPECT_NE(written.error().text().find("overlaps another block's"), std::string::npos);
}

TEST_F(VhdTest, PlacesThatHoldNoGuestDataAreCorrupt) {
  Create();
  Put(*Open(), 0, kBlock, 4);
  const uint32_t end = static_cast<uint32_t>(Size() / kSector);
  for (uint32_t sector : {0u, 1u, 3u, end - 1, end, end + 1000, 0xfffffffeu}) {
    WriteEntry(5, sector);
    auto layer = Open(false);
    std::vector<std::byte> bytes(512);
    auto read = Read(*layer, 5 * kBlock, Bytes(bytes));
    ASSERT_FALSE(read) << sector;
    EXPECT_EQ(read.error().code(), Code::kCorrupt);
    EXPECT_NE(read.error().text().find("block 5"), std::string::npos) << read.error().text();
    EXPECT_TRUE(Holds(*layer, 0, kBlock, 4));
  }
}

TEST_F(VhdTest, GrowsAndShrinks) {
  Create();
  auto layer = Open();
  Put(*layer, 0, kDisk, 9);
  ASSERT_NE(layer->resizer(), nullptr);
  const uint64_t larger = 5000 * kBlock + 512;
  ASSERT_TRUE(layer->resizer()->Resize(larger, Preallocation::kOff));
  EXPECT_EQ(layer->info().size, larger);
  EXPECT_TRUE(Holds(*layer, 0, kDisk, 9));
  EXPECT_TRUE(Holds(*layer, kDisk, larger - kDisk, 0));
  Put(*layer, larger - 100, 100, 8);
  layer.reset();
  EXPECT_TRUE(*IsSound(store_));
  layer = Open();
  EXPECT_EQ(layer->info().size, larger);
  EXPECT_TRUE(Holds(*layer, larger - 100, 100, 8));
  const uint64_t smaller = 10 * kBlock + 1024;
  ASSERT_TRUE(layer->resizer()->Resize(smaller, Preallocation::kOff));
  EXPECT_TRUE(Holds(*layer, 0, smaller, 9));
  ASSERT_TRUE(layer->resizer()->Resize(kDisk, Preallocation::kOff));
  EXPECT_TRUE(Holds(*layer, smaller, kDisk - smaller, 0)) << "what was cut off stays away";
  EXPECT_FALSE(layer->resizer()->Resize(2041 * kGiB, Preallocation::kOff));
  EXPECT_FALSE(layer->resizer()->Resize(kDisk, Preallocation::kFull));
  ASSERT_TRUE(layer->resizer()->Resize(kDisk - 100, Preallocation::kOff));
  layer.reset();
  EXPECT_TRUE(*IsSound(store_));
  EXPECT_EQ(Headers().size, kDisk);
}

TEST_F(VhdTest, FixedGrowsAndShrinks) {
  Configuration fixed{"fixed", kDisk, kBlock, {{"subformat", "fixed"}}};
  ASSERT_TRUE(CreateImage(fixed, store_));
  auto layer = Open();
  Put(*layer, 0, kDisk, 9);
  ASSERT_TRUE(layer->resizer()->Resize(kDisk + 512, Preallocation::kOff));
  EXPECT_TRUE(Holds(*layer, kDisk, 512, 0));
  ASSERT_TRUE(layer->resizer()->Resize(2 * kDisk, Preallocation::kFull));
  EXPECT_TRUE(Holds(*layer, 0, kDisk, 9));
  EXPECT_TRUE(Holds(*layer, kDisk, kDisk, 0));
  ASSERT_TRUE(layer->resizer()->Resize(kBlock, Preallocation::kOff));
  layer.reset();
  EXPECT_EQ(Size(), kBlock + kSector);
  layer = Open();
  EXPECT_EQ(layer->info().size, kBlock);
  EXPECT_TRUE(Holds(*layer, 0, kBlock, 9));
}

TEST_F(VhdTest, ParentsAreFoundByPathAndKnownById) {
  Create(true);
  auto layer = Open();
  ASSERT_EQ(layer->info().references.size(), 1u);
  const Reference& parent = layer->info().references[0];
  EXPECT_EQ(parent.name, "parent.vhd");
  EXPECT_EQ(parent.format, "vpc");
  EXPECT_EQ(parent.id, "00112233-4455-6677-8899-aabbccddeeff");
  EXPECT_EQ(parent.modified, 1700000000);
  EXPECT_EQ(parent.paths, (std::vector<std::string>{"./parent.vhd", "parent.vhd"}));
}

TEST_F(VhdTest, OptionsThatCannotBe) {
  auto refusal = [&](std::map<std::string, std::string> options, uint64_t size = kDisk,
                     bool parent = false) {
    MemoryStore store;
    CreateOptions create;
    create.size = size;
    create.options = std::move(options);
    if (parent) create.parent = Reference{.name = "parent.vhd", .format = "vpc"};
    auto created = CreateVhd(store, create);
    return created.has_value() ? std::string() : created.error().text();
  };
  EXPECT_NE(refusal({{"subformat", "thin"}}), "");
  EXPECT_NE(refusal({{"block_size", "3M"}}), "");
  EXPECT_NE(refusal({{"block_size", "2M"}, {"subformat", "fixed"}}), "");
  EXPECT_NE(refusal({{"preallocation", "full"}}), "");
  EXPECT_NE(refusal({{"nothing", "on"}}), "");
  EXPECT_NE(refusal({}, 2040 * kGiB + 512).find("2040 GiB"), std::string::npos);
  EXPECT_EQ(refusal({}, 2040 * kGiB), "");
  EXPECT_NE(refusal({}, kDisk, true).find("id"), std::string::npos) << "-u";
}

TEST_F(VhdTest, ParentsThatCannotBe) {
  CreateOptions create;
  create.size = kDisk;
  create.parent = Reference{.name = "p", .format = "qcow2"};
  create.parent_file = ParentOf(kDisk);
  create.parent_file->info.format = "qcow2";
  auto created = CreateVhd(store_, create);
  ASSERT_FALSE(created);
  EXPECT_EQ(created.error().code(), Code::kUnsupported);
  EXPECT_NE(created.error().text().find("is qcow2"), std::string::npos);
  create.parent_file = ParentOf(kDisk);
  create.parent_file->info.identity.id.clear();
  EXPECT_FALSE(CreateVhd(store_, create));
}

TEST_F(VhdTest, SizesFollowAGeometryUnlessForced) {
  for (uint64_t size : {uint64_t{0}, uint64_t{512}, kMiB, 10 * kMiB + 512, 40 * kGiB, 200 * kGiB}) {
    CreateOptions create;
    create.size = size;
    ASSERT_TRUE(CreateVhd(store_, create));
    auto layer = Open(false);
    Image image = Headers();
    EXPECT_GE(layer->info().size, size);
    if (size < 127 * kGiB) {
      EXPECT_EQ(image.footer.geometry.bytes(), image.size);
    } else {
      EXPECT_EQ(image.size, size);
    }
    create.options["force_size"] = "on";
    ASSERT_TRUE(CreateVhd(store_, create));
    EXPECT_EQ(Open(false)->info().size, size);
  }
}

TEST_F(VhdTest, ReproducibleImagesAreTheSame) {
  CreateOptions create;
  create.size = kDisk;
  create.reproducible = true;
  ASSERT_TRUE(CreateVhd(store_, create));
  auto first = store_.Contents();
  ASSERT_TRUE(CreateVhd(store_, create));
  EXPECT_EQ(store_.Contents(), first);
  create.reproducible = false;
  ASSERT_TRUE(CreateVhd(store_, create));
  EXPECT_NE(store_.Contents(), first);
}

// A block that Xen's batmap calls full stays full, since we leave the batmap as it is.
TEST_F(VhdTest, BatmapsStayTrue) {
  Create(true);
  Image image = Headers();
  Footer footer = image.footer;
  footer.creator = std::string("tap\0", 4);
  const uint64_t at = image.header.table().end();
  // The locators lie where Xen's batmap goes: without them the name is enough.
  DiskHeader header = image.disk_header;
  for (DiskLocator& locator : header.locators) locator = {};
  SealHeader(header);
  std::vector<std::byte> map(512);
  SetBits(map, 4, 5, true);
  SetBits(map, 19, 20, true);
  DiskBatmap batmap{};
  std::memcpy(batmap.cookie, kBatmapCookie, sizeof batmap.cookie);
  batmap.offset = at + 512;
  batmap.sectors = 1;
  batmap.checksum = ChecksumOf(map, map.size());
  const DiskFooter disk = EncodeFooter(footer);
  ASSERT_TRUE(store_.Resize(at + 1024));
  ASSERT_TRUE(store_.Write(at, AsBytes(batmap)));
  ASSERT_TRUE(store_.Write(at + 512, ConstBytes(map)));
  ASSERT_TRUE(store_.Write(image.footer.data_offset, AsBytes(header)));
  ASSERT_TRUE(store_.Write(0, AsBytes(disk)));
  ASSERT_TRUE(store_.Write(at + 1024, AsBytes(disk)));

  auto layer = Open();
  EXPECT_EQ(FactOf(*layer, "batmap"), "good");
  Put(*layer, 4 * kBlock + 1000, 10, 1);
  Put(*layer, 5 * kBlock + 1000, 10, 1);
  Extent extent;
  ASSERT_TRUE(layer->Map({4 * kBlock, kBlock}, std::span(&extent, 1)));
  EXPECT_EQ(extent.kind, Kind::kData);
  EXPECT_EQ(extent.guest.length, kBlock) << "filled to its borders";
  ASSERT_TRUE(layer->Map({5 * kBlock, kBlock}, std::span(&extent, 1)));
  EXPECT_EQ(extent.kind, Kind::kParent);
  auto dropped = layer->Discard({4 * kBlock, kBlock}, Kind::kParent);
  ASSERT_TRUE(dropped);
  EXPECT_TRUE(dropped->empty());
  layer.reset();
  EXPECT_TRUE(*IsSound(store_));
}

}  // namespace
}  // namespace platter::vhd
