#include "formats/vhd/vhd_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "formats/vhd/vhd_image.h"
#include "formats/vhd/vhd_subjects_testing.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"

namespace platter::vhd {
namespace {

using testing::HasSubstr;

constexpr uint64_t kBlock = 16384, kDisk = 20 * kBlock;

class VhdCheck : public testing::Test {
 protected:
  void SetUp() override {
    Configuration configuration{"test", kDisk, kBlock, {{"block_size", "16K"}}};
    ASSERT_TRUE(CreateImage(configuration, store_));
    auto layer = OpenImage(store_);
    std::vector<std::byte> bytes(4 * kBlock, std::byte{7});
    ASSERT_TRUE(Write(**layer, 0, ConstBytes(bytes)));
    ASSERT_TRUE((*layer)->Flush());
  }

  CheckReport Check(CheckOptions::Repair repair = CheckOptions::kNone) {
    CheckOptions options;
    options.repair = repair;
    auto report = CheckVhd(store_, OpenOptions{}, options);
    EXPECT_TRUE(report) << report.error().text();
    return report.has_value() ? std::move(*report) : CheckReport{};
  }
  // Finds one corruption saying `text`, which "all" repairs.
  void ExpectRepaired(const std::string& text) {
    CheckReport report = Check();
    ASSERT_EQ(report.findings.size(), 1u);
    EXPECT_THAT(report.findings[0].text, HasSubstr(text));
    EXPECT_EQ(report.corruptions, 1u);
    report = Check(CheckOptions::kLeaks);
    EXPECT_EQ(report.corruptions, 1u) << "not a leak";
    report = Check(CheckOptions::kAll);
    EXPECT_EQ(report.corruptions, 0u);
    EXPECT_EQ(report.corruptions_fixed, 1u);
    EXPECT_TRUE(Check().findings.empty());
  }
  uint64_t Size() { return *store_.Size(); }
  Image Headers() { return std::move(ReadImage(store_, OpenOptions{})->image); }
  uint32_t Entry(uint64_t block) {
    be32 entry;
    Bytes bytes = std::as_writable_bytes(std::span(&entry, 1));
    EXPECT_TRUE(store_.Read(Headers().header.table_offset + block * 4, bytes));
    return entry;
  }
  void SetEntry(uint64_t block, uint32_t sector) {
    const be32 entry(sector);
    ASSERT_TRUE(store_.Write(Headers().header.table_offset + block * 4, AsBytes(entry)));
  }
  void ExpectContent() {
    auto layer = OpenImage(store_, false);
    ASSERT_TRUE(layer) << layer.error().text();
    std::vector<std::byte> bytes(4 * kBlock);
    ASSERT_TRUE(Read(**layer, 0, Bytes(bytes)));
    EXPECT_EQ(std::ranges::count(bytes, std::byte{7}), static_cast<ptrdiff_t>(bytes.size()));
  }

  MemoryStore store_;
};

TEST_F(VhdCheck, ASoundImage) {
  CheckReport report = Check();
  EXPECT_TRUE(report.findings.empty()) << report.findings[0].text;
  EXPECT_EQ(report.total_units, 20u);
  EXPECT_EQ(report.allocated_units, 4u);
  EXPECT_EQ(report.image_end, Size());
}

TEST_F(VhdCheck, EntriesThatNameNoPlace) {
  SetEntry(9, static_cast<uint32_t>(Size() / kSector) + 100);
  ExpectRepaired("entry 9: its place");
  SetEntry(9, 2);
  ExpectRepaired("overlaps the dynamic disk header");
  SetEntry(9, 0);
  ExpectRepaired("overlaps the copy of the footer");
  EXPECT_EQ(Entry(9), kUnused);
  ExpectContent();
}

TEST_F(VhdCheck, ABlockThatIsHalfThereIsKept) {
  ASSERT_TRUE(store_.Resize(Size() - kBlock / 2));
  const std::vector<std::byte> before = store_.Contents();
  for (auto repair : {CheckOptions::kLeaks, CheckOptions::kAll}) {
    CheckReport report = Check(repair);
    EXPECT_EQ(report.corruptions, 1u);
    EXPECT_EQ(report.leaks_fixed, 0u);
    EXPECT_EQ(store_.Contents(), before) << "what is left of block 3 is still there";
  }
  auto layer = OpenImage(store_);
  std::vector<std::byte> bytes(kBlock);
  EXPECT_TRUE(Read(**layer, 3 * kBlock, Bytes(bytes).first(kBlock / 4)));
  EXPECT_FALSE(Read(**layer, 3 * kBlock, Bytes(bytes)));
  auto written = Write(**layer, 0, ConstBytes(bytes));
  ASSERT_FALSE(written) << "the rest of block 3 would read as zeros";
  EXPECT_THAT(written.error().text(), HasSubstr("block 3: its place"));
}

TEST_F(VhdCheck, AFooterIsNoGuestData) {
  std::vector<std::byte> footer(kSector);
  ASSERT_TRUE(store_.Read(Size() - kSector, Bytes(footer)));
  ASSERT_TRUE(store_.Write(Size() - 2 * kSector, ConstBytes(footer)));
  ASSERT_TRUE(store_.Resize(Size() - kSector));
  auto layer = OpenImage(store_, false);
  std::vector<std::byte> bytes(kBlock);
  EXPECT_TRUE(Read(**layer, 3 * kBlock, Bytes(bytes).first(kBlock - kSector)));
  EXPECT_FALSE(Read(**layer, 3 * kBlock, Bytes(bytes)));
  EXPECT_EQ(Check(CheckOptions::kAll).corruptions, 1u);
}

TEST_F(VhdCheck, OverlapsNameBothOwnersAndStay) {
  SetEntry(9, Entry(2));
  CheckReport report = Check(CheckOptions::kAll);
  EXPECT_EQ(report.corruptions, 1u);
  EXPECT_EQ(report.corruptions_fixed, 0u);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_THAT(report.findings[0].text, HasSubstr("block 9"));
  EXPECT_THAT(report.findings[0].text, HasSubstr("of block 2"));
  SetEntry(9, Entry(2) + 10);
  EXPECT_EQ(Check().corruptions, 2u) << "it overlaps its neighbour, too";
}

TEST_F(VhdCheck, Footers) {
  std::vector<std::byte> rubbish(100, std::byte{0x55});
  ASSERT_TRUE(store_.Write(200, ConstBytes(rubbish)));
  ExpectRepaired("copy of the footer at 0");
  ASSERT_TRUE(store_.Write(Size() - 300, ConstBytes(rubbish)));
  ExpectRepaired("footer at the end of the file");
  ExpectContent();
}

TEST_F(VhdCheck, WhatACrashLeavesIsALeak) {
  const uint64_t size = Size();
  ASSERT_TRUE(store_.Resize(size - kSector));
  ASSERT_TRUE(store_.Resize(size + 5 * kBlock));
  CheckReport report = Check();
  EXPECT_EQ(report.corruptions, 0u);
  EXPECT_EQ(report.leaks, 1u);
  report = Check(CheckOptions::kLeaks);
  EXPECT_EQ(report.leaks_fixed, 1u);
  EXPECT_EQ(Size(), size);
  EXPECT_TRUE(Check().findings.empty());
  ExpectContent();
}

// Between the footer, when it says something else, and its copy.
TEST_F(VhdCheck, ACopyThatIsBehindIsALeak) {
  Footer footer = Headers().footer;
  footer.saved_state = 1;
  ASSERT_TRUE(store_.Write(0, AsBytes(EncodeFooter(footer))));
  CheckReport report = Check();
  EXPECT_EQ(report.corruptions, 0u);
  EXPECT_EQ(report.leaks, 1u);
  EXPECT_EQ(Check(CheckOptions::kLeaks).leaks_fixed, 1u);
  EXPECT_TRUE(Check().findings.empty());
  // Somebody else's is no earlier state.
  footer.id[0] = ~footer.id[0];
  ASSERT_TRUE(store_.Write(0, AsBytes(EncodeFooter(footer))));
  EXPECT_EQ(Check(CheckOptions::kLeaks).corruptions, 1u);
  ExpectRepaired("copy of the footer at 0");
}

TEST_F(VhdCheck, BlocksThatNobodyNames) {
  const uint64_t size = Size();
  SetEntry(3, kUnused);
  CheckReport report = Check();
  EXPECT_EQ(report.leaks, 1u);
  EXPECT_EQ(report.corruptions, 0u);
  EXPECT_EQ(Check(CheckOptions::kLeaks).leaks_fixed, 1u);
  EXPECT_LT(Size(), size - kBlock);
}

TEST_F(VhdCheck, FixedDisks) {
  MemoryStore store;
  Configuration fixed{"fixed", kDisk, kBlock, {{"subformat", "fixed"}}};
  ASSERT_TRUE(CreateImage(fixed, store));
  auto report = CheckVhd(store, OpenOptions{}, CheckOptions{});
  ASSERT_TRUE(report);
  EXPECT_TRUE(report->findings.empty());
  EXPECT_EQ(report->image_end, kDisk + kSector);
  ASSERT_TRUE(store.Resize(kDisk));
  EXPECT_FALSE(CheckVhd(store, OpenOptions{}, CheckOptions{}));
}

TEST_F(VhdCheck, ABatmapThatSaysTooMuch) {
  // A dynamic disk by Xen: the map follows the table, and block 0 is not full.
  Image image = Headers();
  Footer footer = image.footer;
  footer.creator = std::string("tap\0", 4);
  const DiskFooter disk = EncodeFooter(footer);
  const uint64_t at = Size();
  DiskHeader header = image.disk_header;
  const uint64_t table = at, map_at = at + 2 * kSector;
  std::vector<std::byte> sector(kSector);
  ASSERT_TRUE(store_.Read(image.header.table_offset, Bytes(sector)));
  ASSERT_TRUE(store_.Write(table, ConstBytes(sector)));
  header.table_offset = table;
  SealHeader(header);
  std::vector<std::byte> map(kSector);
  SetBits(map, 0, 2, true);
  DiskBatmap batmap{};
  std::memcpy(batmap.cookie, kBatmapCookie, sizeof batmap.cookie);
  batmap.offset = map_at;
  batmap.sectors = 1;
  batmap.checksum = ChecksumOf(map, map.size());
  ASSERT_TRUE(store_.Write(map_at, ConstBytes(map)));
  ASSERT_TRUE(store_.Write(table + kSector, AsBytes(batmap)));
  ASSERT_TRUE(store_.Write(image.footer.data_offset, AsBytes(header)));
  ASSERT_TRUE(store_.Write(0, AsBytes(disk)));
  ASSERT_TRUE(store_.Write(map_at + kSector, AsBytes(disk)));
  EXPECT_TRUE(Check().findings.empty());
  const std::byte half{0x0f};
  ASSERT_TRUE(store_.Write(Entry(0) * kSector, std::span(&half, 1)));
  ExpectRepaired("batmap: it calls block 0 full");
  EXPECT_TRUE(Headers().batmap_good);
}

}  // namespace
}  // namespace platter::vhd
