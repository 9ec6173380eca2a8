// What extents of each kind mean, and what is refused.
#include "formats/vmdk/vmdk_layer.h"

#include <gtest/gtest.h>

#include "base/endian.h"
#include "cow/disk.h"
#include "cow/search.h"
#include "formats/vmdk/vmdk_testing.h"
#include "io/codec/codec.h"
#include "io/engine/engine.h"

namespace platter::vmdk {
namespace {

constexpr uint64_t kGrain = 64 * kKiB;

std::string Text(std::string_view create_type, std::string_view extents,
                 std::string_view more = "") {
  return fmt::format(
      "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{}\"\n{}{}",
      create_type, more, extents);
}

// The text of the error that `result` holds.
template <class T>
std::string ErrorOf(const Result<T>& result) {
  return result ? "no error" : result.error().text();
}

bool Has(const std::string& text, std::string_view part) { return text.find(part) != text.npos; }

class VmdkLayerTest : public testing::Test {
 protected:
  // A new image with `data` at offset 0, closed again.
  void Make(uint64_t size, const Options& options, ConstBytes data) {
    ASSERT_TRUE(image_.Create(size, options));
    auto layer = image_.Open(true);
    ASSERT_TRUE(layer) << layer.error().text();
    ASSERT_TRUE(Write(**layer, 0, data));
    ASSERT_TRUE((*layer)->Flush());
  }
  std::unique_ptr<Layer> Open(bool writable = false) {
    auto layer = image_.Open(writable);
    EXPECT_TRUE(layer) << layer.error().text();
    return layer ? std::move(*layer) : nullptr;
  }
  SparseGeometry Geometry() {
    std::array<std::byte, kSector> head;
    EXPECT_TRUE(image_.store.Read(0, Bytes(head)));
    return *ParseSparse(head);
  }
  uint32_t Load(uint64_t at) {
    le32 value;
    EXPECT_TRUE(image_.store.Read(at, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }
  void Store32(uint64_t at, uint32_t value) {
    ASSERT_TRUE(image_.store.Write(at, AsBytes(le32(value))));
  }

  TestImage image_;
};

TEST_F(VmdkLayerTest, FlatExtentsAtTheirOffsets) {
  std::vector<std::byte> bytes = Noise(16 * kSector, 1);
  MemoryStore file{ConstBytes(bytes)};
  image_.files.Lend("x", file);
  image_.Describe(
      Text("custom", "RW 2 FLAT \"x\" 5\nRW 3 ZERO\nRW 4 FLAT \"x\" 0\nRW 1 VMFS \"x\"\n"));
  auto layer = Open(true);
  auto content = Content(*layer);
  ASSERT_TRUE(content) << content.error().text();
  ASSERT_EQ(content->size(), 10 * kSector);
  auto part = [&](uint64_t sector, uint64_t count) {
    return ConstBytes(bytes).subspan(sector * kSector, count * kSector);
  };
  EXPECT_TRUE(std::ranges::equal(ConstBytes(*content).first(2 * kSector), part(5, 2)));
  EXPECT_TRUE(IsZero(ConstBytes(*content).subspan(2 * kSector, 3 * kSector)));
  EXPECT_TRUE(
      std::ranges::equal(ConstBytes(*content).subspan(5 * kSector, 4 * kSector), part(0, 4)));
  EXPECT_TRUE(std::ranges::equal(ConstBytes(*content).subspan(9 * kSector), part(0, 1)));

  std::vector<std::byte> data = Noise(kSector, 2);
  ASSERT_TRUE(Write(*layer, kSector, data));
  ASSERT_TRUE(layer->Flush());
  std::vector<std::byte> now = file.Contents();
  EXPECT_TRUE(std::ranges::equal(ConstBytes(now).subspan(6 * kSector, kSector), ConstBytes(data)));
  EXPECT_EQ(now.size(), bytes.size());
}

// New grains come from the end of the file: there, what was cut off would be found again as
// somebody else's.
TEST_F(VmdkLayerTest, AnExtentThatWasCutIsNotWritten) {
  const std::vector<std::byte> data = Noise(4 * kGrain, 1);
  Make(64 * kGrain, {}, data);
  ASSERT_TRUE(image_.store.Resize(*image_.store.Size() - 2 * kGrain));
  const std::vector<std::byte> before = image_.store.Contents();
  auto layer = Open(true);
  auto written = Write(*layer, 32 * kGrain, Noise(kGrain, 2));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code(), Code::kCorrupt);
  EXPECT_TRUE(Has(ErrorOf(written), "entry 2: the grain at")) << ErrorOf(written);
  EXPECT_FALSE(layer->Discard({0, kGrain}, Kind::kHole));
  layer.reset();
  EXPECT_EQ(image_.store.Contents(), before);
}

TEST_F(VmdkLayerTest, AnExtentWithSharedGrainsIsNotWritten) {
  std::vector<std::byte> data = Noise(4 * kGrain, 1);
  std::fill(data.begin() + 3 * kGrain, data.end(), std::byte{0});
  Make(1024 * kGrain, {}, data);
  const uint64_t table = Load(Geometry().directory) * kSector;
  const uint32_t third = Load(table + 3 * sizeof(le32));
  for (uint32_t entry : {third, third + 5, third - 5}) {
    Store32(table + 9 * sizeof(le32), entry);
    auto layer = Open(true);
    auto written = Write(*layer, 0, Noise(kGrain, 2));
    ASSERT_FALSE(written) << entry - third;
    EXPECT_TRUE(Has(ErrorOf(written), "table 0, entry 9: the grain at")) << ErrorOf(written);
  }
  Store32(table + 9 * sizeof(le32), 0);
  // A table in a grain.
  Store32(Geometry().directory + sizeof(le32), third + 8);
  auto written = Write(*Open(true), 0, Noise(kGrain, 2));
  EXPECT_TRUE(Has(ErrorOf(written), "overlaps the grain table")) << ErrorOf(written);
}

// A last grain that was not written to its end keeps its place: no table goes there.
TEST_F(VmdkLayerTest, ALastGrainInPartIsNoFreeSpace) {
  std::vector<std::byte> data = Noise(3 * kGrain, 1);
  Make(1024 * kGrain, {}, data);
  for (uint64_t directory : {Geometry().directory, *Geometry().redundant}) {
    Store32(directory + sizeof(le32), 0);
  }
  ASSERT_TRUE(image_.store.Resize(*image_.store.Size() - kGrain + 1000));
  auto layer = Open(true);
  const std::vector<std::byte> more = Noise(kGrain, 2);
  ASSERT_TRUE(Write(*layer, 600 * kGrain, more));
  ASSERT_TRUE(layer->Flush());
  layer = Open();
  data.resize(1024 * kGrain);
  std::fill(data.begin() + 2 * kGrain + 1000, data.begin() + 3 * kGrain, std::byte{0});
  std::ranges::copy(more, data.begin() + 600 * kGrain);
  auto content = Content(*layer);
  ASSERT_TRUE(content) << ErrorOf(content);
  EXPECT_TRUE(*content == data);
  EXPECT_EQ(image_.Check()->corruptions, 0u) << Findings(*image_.Check());
}

TEST_F(VmdkLayerTest, WhatMayNotBeWrittenIsRefused) {
  std::vector<std::byte> bytes = Noise(4 * kSector, 1);
  MemoryStore file{ConstBytes(bytes)};
  image_.files.Lend("x", file);
  image_.Describe(Text("custom", "RDONLY 4 FLAT \"x\" 0\nRW 4 ZERO\n"));
  std::vector<std::byte> before = image_.store.Contents();
  auto layer = Open(true);
  EXPECT_EQ(Content(*layer)->size(), 8 * kSector);
  auto written = Write(*layer, 0, Noise(kSector, 2));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code(), Code::kReadOnly);
  EXPECT_TRUE(Has(ErrorOf(written), "RDONLY")) << ErrorOf(written);
  written = Write(*layer, 5 * kSector, Noise(kSector, 2));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code(), Code::kReadOnly);
  EXPECT_TRUE(Has(ErrorOf(written), "ZERO")) << ErrorOf(written);
  EXPECT_TRUE(layer->Flush());
  layer.reset();
  EXPECT_EQ(file.Contents(), bytes);
  EXPECT_EQ(image_.store.Contents(), before) << "a refused write changes no id";
}

TEST_F(VmdkLayerTest, NoAccessCannotBeReadAndNeedsNoFile) {
  image_.Describe(Text("custom", "RW 4 ZERO\nNOACCESS 4 FLAT \"missing\" 0\n"));
  auto layer = Open();
  std::vector<std::byte> bytes(4 * kSector);
  EXPECT_TRUE(Read(*layer, 0, Bytes(bytes)));
  auto read = Read(*layer, 4 * kSector, Bytes(bytes));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code(), Code::kRefused);
  EXPECT_TRUE(Has(ErrorOf(read), "is NOACCESS")) << ErrorOf(read);
}

TEST_F(VmdkLayerTest, AFullDeviceIsADevice) {
  MemoryStore file(4 * kSector);
  image_.files.Lend("x", file);
  image_.Describe(Text("fullDevice", "RW 4 FLAT \"x\" 0\n"));
  EXPECT_TRUE(Has(ErrorOf(image_.Open(false)), "means a device"));
  MemoryStore device(8 * kSector, {.name = "device", .fixed_size = true});
  image_.files.Lend("x", device);
  EXPECT_EQ(Open()->info().size, 4 * kSector);
}

TEST_F(VmdkLayerTest, AShortFileIsToldWhereItEnds) {
  MemoryStore file(2 * kSector);
  image_.files.Lend("x", file);
  image_.Describe(Text("monolithicFlat", "RW 4 FLAT \"x\" 0\n"));
  auto content = Content(*Open());
  ASSERT_FALSE(content);
  EXPECT_EQ(content.error().code(), Code::kCorrupt);
  auto report = image_.Check();
  ASSERT_TRUE(report);
  EXPECT_EQ(report->corruptions, 1u);
}

TEST_F(VmdkLayerTest, TheIdChangesWithTheFirstWriteOnly) {
  Make(8 * kGrain, {}, Noise(100, 1));
  std::string first = Open()->info().identity.version;
  {
    auto idle = Open(true);
  }
  EXPECT_EQ(Open()->info().identity.version, first);
  {
    auto layer = Open(true);
    ASSERT_TRUE(Write(*layer, 0, Noise(10, 2)));
    EXPECT_EQ(Open()->info().identity.version, layer->info().identity.version)
        << "on disk before the content changes";
    ASSERT_TRUE(Write(*layer, 0, Noise(10, 3)));
  }
  std::string second = Open()->info().identity.version;
  EXPECT_NE(second, first);
  EXPECT_EQ(second.size(), 8u);
}

TEST_F(VmdkLayerTest, ChangeTrackingRefusesWriters) {
  MemoryStore file(4 * kSector);
  image_.files.Lend("x", file);
  image_.Describe(
      Text("monolithicFlat", "RW 4 FLAT \"x\" 0\n", "changeTrackPath=\"x-ctk.vmdk\"\n"));
  auto layer = Open(true);
  EXPECT_TRUE(Content(*layer));
  auto written = Write(*layer, 0, Noise(10, 1));
  EXPECT_TRUE(Has(ErrorOf(written), "change tracking is on ('x-ctk.vmdk')")) << ErrorOf(written);
}

TEST_F(VmdkLayerTest, ZeroedGrainsReadAsZerosAndHideTheParent) {
  TestImage parent;
  ASSERT_TRUE(parent.Create(4 * kGrain, {}));
  auto below = parent.Open(true);
  ASSERT_TRUE(Write(**below, 0, Noise(4 * kGrain, 1)));
  ASSERT_TRUE((*below)->Flush());
  ASSERT_TRUE(image_.Create(4 * kGrain, {{"zeroed_grain", "on"}}, below->get()));
  std::vector<std::unique_ptr<Layer>> chain;
  chain.push_back(Open(true));
  chain.push_back(*parent.Open(false));
  auto disk = Disk::FromLayers(std::move(chain));
  ASSERT_TRUE(Zero(*disk, {kGrain, kGrain}, true));
  ASSERT_TRUE(Write(*disk, 2 * kGrain + 5, Noise(100, 2)));
  std::vector<std::byte> want = Noise(4 * kGrain, 1), data = Noise(100, 2);
  std::fill_n(want.begin() + kGrain, kGrain, std::byte{0});
  std::ranges::copy(data, want.begin() + 2 * kGrain + 5);
  EXPECT_EQ(*Content(*disk), want);
  EXPECT_EQ(Geometry().version, 2u);
}

TEST_F(VmdkLayerTest, AChildNamesItsParentAndItsContent) {
  TestImage parent;
  ASSERT_TRUE(parent.Create(kGrain, {}));
  auto below = parent.Open(true);
  ASSERT_TRUE(image_.Create(kGrain, {}, below->get(), "sub/the parent.vmdk"));
  auto child = Open();
  ASSERT_EQ(child->info().references.size(), 1u);
  const Reference& reference = child->info().references[0];
  EXPECT_EQ(reference.name, "sub/the parent.vmdk");
  EXPECT_EQ(reference.paths.back(), "the parent.vmdk");
  EXPECT_TRUE(CheckIdentity(reference, (*below)->info().identity));
  ASSERT_TRUE(Write(**below, 0, Noise(10, 1)));
  auto changed = CheckIdentity(reference, (*below)->info().identity);
  ASSERT_FALSE(changed);
  EXPECT_TRUE(Has(ErrorOf(changed), (*below)->info().identity.version)) << ErrorOf(changed);
}

TEST_F(VmdkLayerTest, ParentsOnWindowsAreLookedForHere) {
  image_.Describe(
      "version=1\nencoding=\"windows-1252\"\nCID=1\nparentCID=2\n"
      "parentFileNameHint=\"..\\B\xfcro\\p.vmdk\"\nRW 4 ZERO\n");
  Reference parent = Open()->info().references[0];
  std::vector<std::string> want = {"..\\B\xfcro\\p.vmdk", "..\\Büro\\p.vmdk", "../Büro/p.vmdk",
                                   "p.vmdk"};
  EXPECT_EQ(parent.paths, want);
  EXPECT_EQ(parent.versions, std::vector<std::string>{"00000002"});
}

// ---- Damage ----

TEST_F(VmdkLayerTest, TheRedundantDirectoryStandsForADamagedOne) {
  std::vector<std::byte> data = Noise(3 * kGrain, 1);
  Make(4 * kGrain, {}, data);
  const SparseGeometry g = Geometry();
  for (uint32_t bad : {0u, 1u, 0x7fffffffu}) {
    uint32_t good = Load(g.directory);
    Store32(g.directory, bad);
    auto content = Content(*Open());
    ASSERT_TRUE(content) << content.error().text();
    content->resize(data.size());
    EXPECT_EQ(*content, data) << bad;
    auto written = Write(*Open(true), 3 * kGrain, Noise(10, 2));
    EXPECT_FALSE(written) << "writing needs both";
    auto report = image_.Check();
    ASSERT_TRUE(report);
    EXPECT_EQ(report->corruptions, 1u) << Findings(*report);
    report = image_.Check(CheckOptions::kAll);
    ASSERT_TRUE(report) << report.error().text();
    EXPECT_EQ(report->corruptions_fixed, 1u) << Findings(*report);
    EXPECT_GE(report->allocated_units, 3u);
    // Later rounds leave the tables of earlier ones behind.
    EXPECT_TRUE(bad != 0 || report->leaks == 0) << Findings(*report);
    report = image_.Check();
    EXPECT_EQ(report->corruptions, 0u) << Findings(*report);
    EXPECT_TRUE(Write(*Open(true), 3 * kGrain, Noise(10, 2)));
    Store32(g.directory, good);
  }
}

TEST_F(VmdkLayerTest, AndSoDoItsTables) {
  std::vector<std::byte> data = Noise(3 * kGrain, 1);
  Make(4 * kGrain, {}, data);
  const SparseGeometry g = Geometry();
  uint64_t table = Load(g.directory) * kSector;
  Store32(table + 4, 0x7fffffff);
  auto content = Content(*Open());
  ASSERT_TRUE(content) << content.error().text();
  content->resize(data.size());
  EXPECT_EQ(*content, data);
  auto report = image_.Check(CheckOptions::kAll);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->corruptions_fixed, 1u) << Findings(*report);
  EXPECT_TRUE(Has(Findings(*report), "grain table 0: 1 entries are damaged")) << Findings(*report);
  EXPECT_NE(Load(table + 4), 0x7fffffffu);
}

TEST_F(VmdkLayerTest, WritersKeepBothTablesInStep) {
  Make(4 * kGrain, {}, Noise(3 * kGrain, 1));
  const SparseGeometry g = Geometry();
  uint64_t first = Load(g.directory) * kSector, second = Load(*g.redundant) * kSector;
  ASSERT_NE(first, second);
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(Load(first + 4 * i), Load(second + 4 * i));
    EXPECT_EQ(Load(first + 4 * i) != 0, i < 3);
  }
}

TEST_F(VmdkLayerTest, CheckNamesBothOwnersOfAGrain) {
  Make(4 * kGrain, {}, Noise(3 * kGrain, 1));
  const SparseGeometry g = Geometry();
  for (uint64_t directory : {g.directory, *g.redundant}) {
    uint64_t table = Load(directory) * kSector;
    Store32(table + 4 * 2, Load(table));
  }
  auto report = image_.Check();
  ASSERT_TRUE(report);
  EXPECT_EQ(report->corruptions, 1u) << Findings(*report);
  EXPECT_TRUE(Has(Findings(*report),
                  "the grain of table 0, entry 2 and the grain of table 0, "
                  "entry 0 are both at"))
      << Findings(*report);
}

TEST_F(VmdkLayerTest, AGrainThatCannotBeIsAnErrorWhereItIsRead) {
  Make(4 * kGrain, {}, Noise(3 * kGrain, 1));
  const SparseGeometry g = Geometry();
  for (uint64_t directory : {g.directory, *g.redundant}) {
    Store32(Load(directory) * kSector + 4, 0x7fffffff);
  }
  std::vector<std::byte> bytes(kGrain);
  auto layer = Open();
  EXPECT_TRUE(Read(*layer, 0, Bytes(bytes)));
  auto read = Read(*layer, kGrain, Bytes(bytes));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code(), Code::kCorrupt);
  EXPECT_TRUE(Has(ErrorOf(read), "grain table 0, entry 1")) << ErrorOf(read);
}

TEST_F(VmdkLayerTest, DroppedGrainsAreUsedAgain) {
  Make(32 * kGrain, {}, Noise(16 * kGrain, 1));
  uint64_t size = image_.store.Contents().size();
  auto layer = Open(true);
  ASSERT_TRUE(Zero(*layer, {0, 16 * kGrain}, true));
  ASSERT_TRUE(layer->Flush());
  ASSERT_TRUE(Write(*layer, 16 * kGrain, Noise(16 * kGrain, 2)));
  ASSERT_TRUE(layer->Flush());
  layer.reset();
  EXPECT_EQ(image_.store.Contents().size(), size);
  auto content = Content(*Open());
  ASSERT_TRUE(content);
  EXPECT_TRUE(IsZero(ConstBytes(*content).first(16 * kGrain)));
  EXPECT_TRUE(std::ranges::equal(ConstBytes(*content).subspan(16 * kGrain),
                                 ConstBytes(Noise(16 * kGrain, 2))));
}

// Nobody would find them again.
TEST_F(VmdkLayerTest, DroppedGrainsAreNotLost) {
  const std::vector<std::byte> data = Noise(16 * kGrain, 1);
  Make(32 * kGrain, {}, data);
  const uint64_t size = *image_.store.Size();
  {
    auto layer = Open(true);
    ASSERT_TRUE(Zero(*layer, {2 * kGrain, 4 * kGrain}, true));
    ASSERT_TRUE(Zero(*layer, {13 * kGrain, 3 * kGrain}, true));
    ASSERT_TRUE(layer->Flush());
  }
  EXPECT_EQ(*image_.store.Size(), size - 3 * kGrain) << "those at the end are cut off";
  auto report = image_.Check();
  ASSERT_TRUE(report);
  EXPECT_EQ(Findings(*report), "") << "the others are holes of the file";
  auto content = Content(*Open());
  ASSERT_TRUE(content);
  EXPECT_TRUE(std::ranges::equal(ConstBytes(*content).subspan(6 * kGrain, 7 * kGrain),
                                 ConstBytes(data).subspan(6 * kGrain, 7 * kGrain)));
}

TEST_F(VmdkLayerTest, SpaceThatNoTableNamesIsGivenBack) {
  const std::vector<std::byte> data = Noise(4 * kGrain, 1);
  Make(4 * kGrain, {}, data);
  const uint64_t size = *image_.store.Size();
  ASSERT_TRUE(image_.store.Write(size, ConstBytes(Noise(3 * kGrain, 2))));
  auto report = image_.Check();
  ASSERT_TRUE(report);
  EXPECT_EQ(report->leaks, 3u);
  EXPECT_EQ(report->corruptions, 0u);
  EXPECT_TRUE(Has(Findings(*report), fmt::format("the first at {:#x}", size))) << Findings(*report);
  report = image_.Check(CheckOptions::kLeaks);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->leaks, 0u);
  EXPECT_EQ(report->leaks_fixed, 3u);
  EXPECT_EQ(Findings(*image_.Check()), "");
  EXPECT_EQ(*Content(*Open()), data);
}

// A table that could not be followed may name what seems to be lost.
TEST_F(VmdkLayerTest, NothingIsGivenBackWhereTablesAreDamaged) {
  Make(4 * kGrain, {}, Noise(4 * kGrain, 1));
  const SparseGeometry g = Geometry();
  ASSERT_TRUE(image_.store.Write(*image_.store.Size(), ConstBytes(Noise(kGrain, 2))));
  for (uint64_t directory : {g.directory, *g.redundant}) Store32(directory, 0x7fffffff);
  const std::vector<std::byte> before = image_.store.Contents();
  auto report = image_.Check(CheckOptions::kAll);
  ASSERT_TRUE(report);
  EXPECT_GT(report->corruptions, 0u);
  EXPECT_EQ(report->leaks_fixed, 0u);
  EXPECT_EQ(image_.store.Contents(), before);
}

}  // namespace
}  // namespace platter::vmdk
