// Images as a whole: ids, headers and region tables, resizing, sector bitmaps, parents.
#include "formats/vhdx/vhdx_image.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "formats/vhdx/vhdx_check.h"
#include "formats/vhdx/vhdx_create.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_layer.h"
#include "formats/vhdx/vhdx_subjects_testing.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"

namespace platter::vhdx {
namespace {

using Options = std::map<std::string, std::string>;

std::vector<std::byte> Filled(size_t size, uint8_t value) {
  return std::vector<std::byte>(size, static_cast<std::byte>(value));
}

void Make(MemoryStore& store, uint64_t size, Options options = {{"block_size", "1M"}},
          bool parent = false) {
  auto made = CreateImage({"", size, 1, std::move(options), parent}, store);
  ASSERT_TRUE(made) << made.error().text();
}

std::unique_ptr<Layer> Open(MemoryStore& store, bool writable = true) {
  auto layer = OpenImage(store, writable);
  EXPECT_TRUE(layer) << layer.error().text();
  return layer ? std::move(*layer) : nullptr;
}

Image Look(Store& store) {
  std::unique_ptr<ReplayedStore> replayed;
  auto image = ReadImage(store, replayed);
  EXPECT_TRUE(image) << image.error().text();
  return image ? std::move(*image) : Image();
}

std::byte ByteAt(Layer& layer, uint64_t at) {
  std::byte value{};
  EXPECT_TRUE(Read(layer, at, Bytes(&value, 1)));
  return value;
}

void Put(Layer& layer, uint64_t at, size_t size, uint8_t value) {
  auto written = Write(layer, at, ConstBytes(Filled(size, value)));
  ASSERT_TRUE(written) << written.error().text();
}

TEST(VhdxImage, StaysAsItWasUntilItIsChanged) {
  MemoryStore store;
  Make(store, 3 * kMiB);
  const auto before = store.Contents();
  Open(store)->Flush().value();
  EXPECT_TRUE(store.Contents() == before);
}

// 4 MiB behind its beginning the place would be that of block 0.
TEST(VhdxImage, APlaceNearTheEndOfAllPlacesDoesNotWrap) {
  MemoryStore store;
  Make(store, 32 * kMiB, {{"block_size", "8M"}});
  Put(*Open(store), 0, 8 * kMiB, 7);
  const uint64_t entry = Look(store).regions.bat.offset + 8;
  ASSERT_TRUE(store.Write(
      entry, AsBytes(le64(EncodeEntry({BlockState::kFullyPresent, uint64_t{0} - kMiB})))));
  auto layer = Open(store, false);
  std::vector<std::byte> bytes(4096);
  for (uint64_t at = 0; at < 8 * kMiB; at += kMiB) {
    EXPECT_FALSE(Read(*layer, 8 * kMiB + at, Bytes(bytes))) << at;
  }
}

// More than the pages of one entry of the log would be enough for, each with pages of its own.
TEST(VhdxImage, AThreadMayHoldManyReservations) {
  constexpr uint64_t kBlocks = 300, kSize = kBlocks * kMiB;
  for (bool parent : {false, true}) {
    MemoryStore store;
    Make(store, kSize, {{"block_size", "1M"}, {"log_size", "1M"}}, parent);
    {
      auto layer = Open(store);
      std::vector<std::unique_ptr<Reservation>> held;
      for (uint64_t block = 0; block < kBlocks; ++block) {
        auto reservation = layer->Reserve({block * kMiB, 4096});
        ASSERT_TRUE(reservation) << reservation.error().text();
        for (const Extent& extent : (*reservation)->target()) {
          const auto bytes = Filled(extent.host.length, static_cast<uint8_t>(block % 250 + 1));
          ASSERT_TRUE(extent.store->Write(extent.host.offset, ConstBytes(bytes)));
        }
        held.push_back(std::move(*reservation));
      }
      for (auto& reservation : held) ASSERT_TRUE(reservation->Publish());
      held.clear();
      ASSERT_TRUE(layer->Flush());
    }
    EXPECT_TRUE(*IsSound(store));
    auto layer = Open(store, false);
    for (uint64_t block = 0; block < kBlocks; ++block) {
      ASSERT_EQ(ByteAt(*layer, block * kMiB + 4095), static_cast<std::byte>(block % 250 + 1));
    }
  }
}

TEST(VhdxImage, IdsChangeWithTheFirstWriteAndTheLogIsEmptyAtTheEnd) {
  MemoryStore store;
  Make(store, 3 * kMiB);
  const Header made = Look(store).headers.current;
  {
    auto layer = Open(store);
    Put(*layer, 5, 10, 1);
    const Header now = ReadHeaders(store).value().current;
    EXPECT_NE(now.data_write, made.data_write);
    EXPECT_NE(now.file_write, made.file_write);
    EXPECT_TRUE(IsNil(now.log_id));
    layer->Flush().value();
    const Header logged = ReadHeaders(store).value().current;
    EXPECT_FALSE(IsNil(logged.log_id));
    EXPECT_EQ(logged.data_write, now.data_write);
  }
  const Image closed = Look(store);
  EXPECT_TRUE(IsNil(closed.headers.current.log_id));
  EXPECT_EQ(closed.replayed_entries, 0u);
  EXPECT_EQ(store.Size().value(), 5 * kMiB);  // what the file was too long by is cut off
}

TEST(VhdxImage, ANewImageKeepsItsIdsAndIsReproducible) {
  auto make = [](MemoryStore& store) {
    CreateOptions options;
    options.size = 3 * kMiB;
    options.options["block_size"] = "1M";
    options.reproducible = true;
    ASSERT_TRUE(CreateVhdx(store, options));
    const Header made = Look(store).headers.current;
    OpenOptions open;
    open.writable = open.fresh = true;
    auto layer = OpenVhdx(std::make_unique<WrapperStore>(store), open);
    ASSERT_TRUE(layer) << layer.error().text();
    Put(**layer, kMiB + 7, 100, 5);
    ASSERT_TRUE((*layer)->Flush());
    layer->reset();
    EXPECT_EQ(Look(store).headers.current.data_write, made.data_write);
  };
  MemoryStore a, b;
  make(a), make(b);
  EXPECT_TRUE(a.Contents() == b.Contents());
}

TEST(VhdxImage, EitherHeaderWillDo) {
  for (int slot = 0; slot < 2; ++slot) {
    MemoryStore store;
    Make(store, 3 * kMiB);
    {
      Put(*Open(store), 0, 100, 7);
    }
    ASSERT_TRUE(store.Zero({kHeaderOffsets[slot] + 512, 1}, false));
    ASSERT_TRUE(store.Write(kHeaderOffsets[slot] + 512, ConstBytes(Filled(1, 1))));
    EXPECT_EQ(ByteAt(*Open(store, false), 99), std::byte{7});
    CheckReport report = CheckVhdx(store, {}, {}).value();
    EXPECT_EQ(report.corruptions, 1u);
    report = CheckVhdx(store, {}, {.repair = CheckOptions::kAll}).value();
    EXPECT_EQ(report.corruptions_fixed, 1u);
    EXPECT_EQ(CheckVhdx(store, {}, {}).value().corruptions, 0u);
  }
}

TEST(VhdxImage, EitherRegionTableWillDo) {
  for (uint64_t at : kRegionTableOffsets) {
    MemoryStore store;
    Make(store, 3 * kMiB);
    ASSERT_TRUE(store.Write(at + 40000, ConstBytes(Filled(1, 1))));
    EXPECT_EQ(ByteAt(*Open(store, false), 99), std::byte{0});
    EXPECT_EQ(CheckVhdx(store, {}, {}).value().corruptions, 1u);
    EXPECT_EQ(CheckVhdx(store, {}, {.repair = CheckOptions::kAll}).value().corruptions_fixed, 1u);
    EXPECT_EQ(CheckVhdx(store, {}, {}).value().corruptions, 0u);
  }
}

TEST(VhdxImage, AnEmptyDiskIsOneHoleWhateverItsEntriesSay) {
  for (const char* zero : {"on", "off"}) {
    MemoryStore store;
    Make(store, 64 * kTiB, {{"block_state_zero", zero}, {"block_size", "256M"}});
    auto layer = Open(store, false);
    std::vector<Extent> extents(2);
    for (uint64_t at = 0; at < 64 * kTiB;) {
      ASSERT_EQ(layer->Map({at, 64 * kTiB - at}, extents).value(), 1u);
      EXPECT_EQ(extents[0].kind, Kind::kHole);
      at = extents[0].guest.end();
    }
  }
}

TEST(VhdxImage, ReadsAllStates) {
  MemoryStore store;
  Make(store, 8 * kMiB);
  {
    Put(*Open(store), 0, 8 * kMiB, 9);
  }
  const Range bat = Look(store).regions.bat;
  for (uint64_t state : {0, 1, 2, 3}) {
    le64 raw = *LoadAt<le64>(store.Contents(), bat.offset + state * 8);
    raw = (raw & kOffsetMask) | state;
    ASSERT_TRUE(store.Write(bat.offset + state * 8, AsBytes(raw)));
  }
  auto layer = Open(store);
  for (uint64_t block = 0; block < 8; ++block) {
    EXPECT_EQ(ByteAt(*layer, block * kMiB), std::byte{block < 4 ? uint8_t{0} : uint8_t{9}});
  }
  // What an undefined block keeps in reserve is not given to others.
  Put(*layer, kMiB + 5, 1, 4);
  Put(*layer, 3 * kMiB + 5, 1, 5);
  layer->Flush().value();
  EXPECT_EQ(ByteAt(*layer, kMiB), std::byte{0});
  EXPECT_EQ(ByteAt(*layer, 7 * kMiB), std::byte{9});
  layer.reset();
  EXPECT_TRUE(IsSound(store).value());
  for (uint64_t state : {4, 5, 7}) {
    ASSERT_TRUE(store.Write(bat.offset, AsBytes(le64(4 * kMiB | state))));
    EXPECT_FALSE(IsSound(store).has_value());
    std::byte value{};
    EXPECT_FALSE(Read(*Open(store, false), 0, Bytes(&value, 1)).has_value());
  }
}

TEST(VhdxImage, RefusesToWriteWhereOnePlaceIsUsedTwice) {
  MemoryStore store;
  Make(store, 4 * kMiB);
  {
    Put(*Open(store), 0, 2 * kMiB, 9);
  }
  const Range bat = Look(store).regions.bat;
  ASSERT_TRUE(store.Write(bat.offset + 8, AsBytes(*LoadAt<le64>(store.Contents(), bat.offset))));
  CheckReport report = CheckVhdx(store, {}, {}).value();
  ASSERT_EQ(report.corruptions, 1u);
  EXPECT_NE(report.findings[0].text.find("block 1"), std::string::npos);
  EXPECT_NE(report.findings[0].text.find("block 0"), std::string::npos);
  auto layer = Open(store);
  EXPECT_EQ(ByteAt(*layer, kMiB), std::byte{9});
  auto written = Write(*layer, 3 * kMiB, ConstBytes(Filled(1, 1)));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code(), Code::kCorrupt);
}

TEST(VhdxImage, FreedBlocksAreUsedAgain) {
  MemoryStore store;
  Make(store, 8 * kMiB);
  auto layer = Open(store);
  Put(*layer, 0, 8 * kMiB, 9);
  layer->Flush().value();
  ASSERT_TRUE(Zero(*layer, {0, 4 * kMiB}, true));
  layer->Flush().value();
  layer->Flush().value();
  Put(*layer, 2 * kMiB + 7, 3, 8);
  layer->Flush().value();
  EXPECT_EQ(ByteAt(*layer, 2 * kMiB + 6), std::byte{0});
  EXPECT_EQ(ByteAt(*layer, 2 * kMiB + 9), std::byte{8});
  layer.reset();
  EXPECT_LE(store.Size().value(), 12 * kMiB);
  EXPECT_TRUE(IsSound(store).value());
}

void ExpectBytes(Layer& layer, uint64_t written, uint64_t size) {
  EXPECT_EQ(layer.info().size, size);
  EXPECT_EQ(ByteAt(layer, 0), std::byte{9});
  EXPECT_EQ(ByteAt(layer, written - 1), std::byte{9});
  for (uint64_t at = written; at < size; at += std::max<uint64_t>(1, (size - written) / 50)) {
    EXPECT_EQ(ByteAt(layer, at), std::byte{0}) << at;
  }
}

TEST(VhdxImage, GrowsAndShrinks) {
  for (bool fixed : {false, true}) {
    MemoryStore store;
    Make(store, 5 * kMiB, {{"block_size", "1M"}, {"subformat", fixed ? "fixed" : "dynamic"}});
    auto layer = Open(store);
    Put(*layer, 0, 5 * kMiB, 9);
    auto resize = [&](uint64_t size) {
      auto done = layer->resizer()->Resize(size, Preallocation::kOff);
      ASSERT_TRUE(done) << done.error().text();
    };
    resize(2 * kMiB + 512);
    resize(7 * kMiB);
    ExpectBytes(*layer, 2 * kMiB + 512, 7 * kMiB);
    layer.reset();
    EXPECT_TRUE(IsSound(store).value());
    ExpectBytes(*Open(store, false), 2 * kMiB + 512, 7 * kMiB);
  }
}

TEST(VhdxImage, TheBatMovesWhereItHasToGrow) {
  MemoryStore store;
  Make(store, 4 * kMiB);
  const Range before = Look(store).regions.bat;
  auto layer = Open(store);
  Put(*layer, 0, 3 * kMiB + 100, 9);
  ASSERT_TRUE(layer->resizer()->Resize(300 * kGiB, Preallocation::kOff));
  ExpectBytes(*layer, 3 * kMiB + 100, 300 * kGiB);
  Put(*layer, 299 * kGiB, 5, 3);
  layer.reset();
  const Image after = Look(store);
  EXPECT_EQ(after.regions.bat.length, 3 * kMiB);
  EXPECT_NE(after.regions.bat.offset, before.offset);
  EXPECT_TRUE(IsSound(store).value());
  layer = Open(store);
  EXPECT_EQ(ByteAt(*layer, 299 * kGiB + 4), std::byte{3});
  ASSERT_TRUE(layer->resizer()->Resize(3 * kMiB + 512, Preallocation::kOff));
  layer.reset();
  EXPECT_TRUE(IsSound(store).value());
  ExpectBytes(*Open(store), 3 * kMiB + 100, 3 * kMiB + 512);
}

TEST(VhdxImage, SectorsOfADifferencingDisk) {
  for (uint32_t sector : {512u, 4096u}) {
    MemoryStore store;
    Make(store, 8 * kMiB, {{"block_size", "2M"}, {"logical_sector_size", std::to_string(sector)}},
         true);
    auto layer = Open(store);
    auto kinds = [&](Range range) {
      std::vector<Extent> extents(16);
      size_t count = layer->Map(range, extents).value();
      std::string text;
      for (size_t i = 0; i < count; ++i) {
        text += extents[i].kind == Kind::kParent ? 'p' : extents[i].kind == Kind::kData ? 'd' : 'z';
        text += std::to_string(extents[i].guest.length / sector) + " ";
      }
      return text;
    };
    const uint64_t base = 2 * kMiB;
    Put(*layer, base + 3 * sector, 2 * sector, 1);
    Put(*layer, base + 9 * sector + 1, 1, 2);
    EXPECT_EQ(kinds({base, 16 * sector}), "p3 d2 p4 d1 p6 ");
    Put(*layer, base + 2 * sector + 5, sector, 3);
    EXPECT_EQ(kinds({base, 16 * sector}), "p2 d3 p4 d1 p6 ");
    layer->Flush().value();
    // Dropped and written again: nothing of the old bits shows.
    EXPECT_EQ(layer->Discard({base, 2 * kMiB}, Kind::kParent).value(), Range(base, 2 * kMiB));
    Put(*layer, base + 12 * sector, 1, 4);
    EXPECT_EQ(kinds({base, 16 * sector}), "p12 d1 p3 ");
    EXPECT_EQ(layer->Discard({base, 2 * kMiB}, Kind::kZero).value(), Range(base, 2 * kMiB));
    EXPECT_EQ(kinds({base, 16 * sector}), "z16 ");
    Put(*layer, base, 2 * kMiB, 5);
    EXPECT_EQ(kinds({base, 16 * sector}), "d16 ");
    layer.reset();
    EXPECT_TRUE(IsSound(store).value());
  }
}

TEST(VhdxImage, SaysWhereItsParentMayBe) {
  MemoryStore store;
  Make(store, 4 * kMiB, {}, true);
  const Info info = Open(store, false)->info();
  ASSERT_EQ(info.references.size(), 1u);
  const Reference& parent = info.references[0];
  EXPECT_EQ(parent.format, "vhdx");
  EXPECT_EQ(parent.versions, std::vector<std::string>{"00112233-4455-6677-8899-aabbccddeeff"});
  EXPECT_EQ(parent.paths,
            (std::vector<std::string>{"./parent.vhdx", "/vm/parent.vhdx", "parent.vhdx"}));
}

TEST(VhdxImage, PreallocationMakesItFixed) {
  MemoryStore store;
  Make(store, 3 * kMiB, {{"block_size", "1M"}, {"preallocation", "full"}});
  EXPECT_TRUE(Look(store).metadata.leave_allocated);
  const uint64_t before = *store.Size();
  auto run = store.FindRun(before - 3 * kMiB);
  ASSERT_TRUE(run);
  EXPECT_TRUE(run->data && run->length == 3 * kMiB);
  auto layer = Open(store);
  ASSERT_TRUE(layer->resizer()->Resize(5 * kMiB, Preallocation::kFull));
  layer.reset();
  EXPECT_TRUE(IsSound(store).value());
  run = store.FindRun(before);
  ASSERT_TRUE(run);
  EXPECT_TRUE(run->data && run->length == 2 * kMiB);
  Make(store, 3 * kMiB);
  layer = Open(store);
  EXPECT_FALSE(layer->resizer()->Resize(5 * kMiB, Preallocation::kFull));
}

TEST(VhdxImage, RefusesOptionsByName) {
  auto code = [](Options options, uint64_t size = kMiB) {
    MemoryStore store;
    CreateOptions create;
    create.size = size;
    create.options = std::move(options);
    auto made = CreateVhdx(store, create);
    return made ? Code::kIo : made.error().code();
  };
  EXPECT_EQ(code({{"block_size", "3M"}}), Code::kUnsupported);
  EXPECT_EQ(code({{"block_size", "512M"}}), Code::kUnsupported);
  EXPECT_EQ(code({{"log_size", "1000"}}), Code::kUnsupported);
  EXPECT_EQ(code({{"logical_sector_size", "1024"}}), Code::kUnsupported);
  EXPECT_EQ(code({{"subformat", "thin"}}), Code::kUnsupported);
  EXPECT_EQ(code({{"subformat", "dynamic"}, {"preallocation", "full"}}), Code::kUnsupported);
  EXPECT_EQ(code({{"colour", "red"}}), Code::kUnsupported);
  EXPECT_EQ(code({}, 65 * kTiB), Code::kOutOfRange);
  EXPECT_EQ(code({}, 64 * kTiB), Code::kIo);  // made
}

}  // namespace
}  // namespace platter::vhdx
