// Bitmaps that follow the guest's writes: bit for bit those of QEMU, from random histories, and
// never one that is trusted and lacks a write.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "formats/qcow2/qcow2_bitmaps.h"
#include "formats/qcow2/qcow2_bitmaps_testing.h"
#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_subjects_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/fault_store.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/random.h"

namespace platter::qcow2 {
namespace {

using Contents = std::vector<std::byte>;

// What a bitmap must hold: granules of everything that was written.
class Expected {
 public:
  explicit Expected(uint64_t granularity) : granularity_(granularity) {}
  void Mark(Range range) {
    for (uint64_t bit = range.offset / granularity_; bit * granularity_ < range.end(); ++bit) {
      bits_.insert(bit);
    }
  }
  std::vector<uint64_t> bits() const { return {bits_.begin(), bits_.end()}; }
  void Clear() { bits_.clear(); }

 private:
  uint64_t granularity_;
  std::set<uint64_t> bits_;
};

class BitmapTrackingTest : public BitmapTest {};

// The layer has found out before that there was nothing to follow.
TEST_F(BitmapTrackingTest, OneThatIsMadeOrEnabledBetweenWritesFollows) {
  MemoryStore image;
  const Configuration configuration{.name = "", .size = kMiB, .cluster = 65536, .options = {}};
  ASSERT_TRUE(CreateImage(configuration, image, nullptr));
  auto layer = OpenImage(configuration, image, nullptr).value();
  const Contents bytes(100);
  auto write = [&](uint64_t at) { ASSERT_TRUE(Write(*layer, at, ConstBytes(bytes))); };
  write(0);
  ASSERT_TRUE(
      layer->bitmapper()->AddBitmap({.name = "off", .granularity = 4096, .enabled = false}));
  write(4096);
  ASSERT_TRUE(layer->bitmapper()->EnableBitmap("off", true));
  write(8192);
  ASSERT_TRUE(layer->bitmapper()->EnableBitmap("off", false));
  write(0);
  ASSERT_TRUE(layer->bitmapper()->AddBitmap({.name = "new", .granularity = 4096}));
  write(16384);
  EXPECT_EQ(DirtyOf(*layer, "off").value(), (std::vector<Range>{{8192, 4096}}));
  EXPECT_EQ(DirtyOf(*layer, "new").value(), (std::vector<Range>{{16384, 4096}}));
}

TEST_F(BitmapTrackingTest, RandomWritesAreMarked) {
  uint64_t seed = 11;
  struct Case {
    const char* options;
    uint64_t cluster;
  };
  for (const auto& [options, cluster] :
       {Case{"", 512}, Case{"", 65536}, Case{"extended_l2=on", 16384},
        Case{"preallocation=metadata", 65536}, Case{"data_file=data,data_file_raw=on", 65536}}) {
    SCOPED_TRACE(fmt::format("{} {} seed {}", options, cluster, ++seed));
    constexpr uint64_t kSize = 6 * kMiB + 1536;
    MemoryStore image, data;
    const Configuration configuration{
        .name = options, .size = kSize, .cluster = cluster, .options = OptionsOf(options)};
    const bool has_data = configuration.has_data_file();
    ASSERT_TRUE(CreateImage(configuration, image, has_data ? &data : nullptr));
    Expected fine(512), coarse(65536), late(4096);
    model::Random random(seed);
    for (int opened = 0; opened < 4; ++opened) {
      auto layer = OpenImage(configuration, image, has_data ? &data : nullptr);
      ASSERT_TRUE(layer) << layer.error().text();
      Bitmapper& bitmaps = *(*layer)->bitmapper();
      if (opened == 0) {
        ASSERT_TRUE(bitmaps.AddBitmap({.name = "fine", .granularity = 512}));
        ASSERT_TRUE(bitmaps.AddBitmap({.name = "coarse", .granularity = 65536}));
        ASSERT_TRUE(bitmaps.AddBitmap({.name = "off", .enabled = false}));
      }
      for (int i = 0; i < 60; ++i) {
        const uint64_t at = random.Below(kSize);
        const uint64_t length = 1 + random.Below(std::min<uint64_t>(kSize - at, 90000));
        Contents bytes(length);
        random.Fill(bytes);
        ASSERT_TRUE(Write(**layer, at, ConstBytes(bytes)));
        for (Expected* each : {&fine, &coarse}) each->Mark({at, length});
        if (opened >= 2) late.Mark({at, length});
        if (opened == 1 && i == 30) {
          ASSERT_TRUE(bitmaps.ClearBitmap("fine"));
          fine.Clear();
        }
        if (opened == 1 && i == 59) {
          ASSERT_TRUE(bitmaps.AddBitmap({.name = "late", .granularity = 4096}));
        }
      }
      // As the layer tells them, from memory.
      std::vector<uint64_t> told;
      ASSERT_TRUE(bitmaps.VisitDirty("fine", {0, kSize}, [&](Range range) {
        for (uint64_t bit = range.offset / 512; bit * 512 < range.end(); ++bit) told.push_back(bit);
        return true;
      }));
      EXPECT_EQ(told, fine.bits());
      // The new bitmap of the second time was made after the last write.
      EXPECT_EQ(LookAtBitmaps(image).value().at("fine").in_use, opened != 1);
      layer->reset();
      const auto seen = LookAtBitmaps(image).value();
      EXPECT_FALSE(seen.at("fine").in_use || seen.at("coarse").in_use || seen.at("off").in_use);
      EXPECT_EQ(seen.at("fine").set, fine.bits());
      EXPECT_EQ(seen.at("coarse").set, coarse.bits());
      EXPECT_TRUE(seen.at("off").set.empty());
      if (opened >= 2) {
        EXPECT_EQ(seen.at("late").set, late.bits());
      }
      auto sound = IsSound(image);
      EXPECT_TRUE(sound && *sound);
    }
  }
}

// The same writes, zeros and discards by both.
// One that is made, or enabled, after the disk was written to: clusters that may be written in
// place are no way around it.
TEST_F(BitmapTrackingTest, BitmapsThatBeginLater) {
  const Configuration configuration{.size = 4 * kMiB, .cluster = 65536};
  MemoryStore image;
  ASSERT_TRUE(CreateImage(configuration, image, nullptr));
  auto layer = OpenImage(configuration, image, nullptr);
  ASSERT_TRUE(layer) << layer.error().text();
  Bitmapper& bitmaps = *(*layer)->bitmapper();
  const Contents bytes(65536, std::byte{1});
  auto write = [&] { return Write(**layer, kMiB, ConstBytes(bytes)); };
  ASSERT_TRUE(write());
  ASSERT_TRUE(bitmaps.AddBitmap({.name = "made"}));
  ASSERT_TRUE(bitmaps.AddBitmap({.name = "enabled", .enabled = false}));
  ASSERT_TRUE(write());
  ASSERT_TRUE(bitmaps.EnableBitmap("made", false));
  ASSERT_TRUE(write());
  ASSERT_TRUE(bitmaps.EnableBitmap("enabled", true));
  ASSERT_TRUE(write());
  layer->reset();
  const auto seen = LookAtBitmaps(image).value();
  EXPECT_EQ(seen.at("made").set, std::vector<uint64_t>{16});
  EXPECT_EQ(seen.at("enabled").set, std::vector<uint64_t>{16});
}

TEST_F(BitmapTrackingTest, AsQemuMarksThem) {
  for (const char* options : {"cluster_size=4k", "cluster_size=64k,extended_l2=on"}) {
    SCOPED_TRACE(options);
    Run(
        fmt::format("rm -f ours theirs && qemu-img create -q -f qcow2 -o {} theirs 8M && qemu-img "
                    "bitmap --add -g 512 theirs fine && qemu-img bitmap --add theirs own && "
                    "cp theirs ours",
                    options));
    Run("qemu-io -c 'write 100k 3k' -c 'write 1000 1' -c 'write 5M 300k' -c 'write 6M 64k' -c "
        "'write -z 6M 64k' "
        "-c 'discard 5M 128k' theirs");
    {
      auto layer = OpenLayer("ours", true);
      ASSERT_TRUE(Write(*layer, 100 * kKiB, Contents(3 * kKiB)));
      ASSERT_TRUE(Write(*layer, 1000, Contents(1)));
      ASSERT_TRUE(Write(*layer, 5 * kMiB, Contents(300 * kKiB)));
      ASSERT_TRUE(Write(*layer, 6 * kMiB, Contents(64 * kKiB, std::byte{1})));
      ASSERT_TRUE(Zero(*layer, {6 * kMiB, 64 * kKiB}, false));
      ASSERT_TRUE(Discard(*layer, {5 * kMiB, 128 * kKiB}));
    }
    auto ours = Look("ours"), theirs = Look("theirs");
    EXPECT_EQ(ours.at("own"), theirs.at("own"));
    // QEMU writes single bytes as whole sectors or clusters; ours are among its.
    for (uint64_t bit : ours.at("fine").set) {
      EXPECT_NE(std::ranges::find(theirs.at("fine").set, bit), theirs.at("fine").set.end()) << bit;
    }
    EXPECT_FALSE(ours.at("fine").in_use);
    ExpectClean("ours", options);
    // QEMU goes on with ours.
    Run("qemu-io -c 'write 7M 4k' ours && qemu-img bitmap --merge own ours fine");
    ExpectClean("ours", options);
  }
}

// What a NBD client sees of ours.
TEST_F(BitmapTrackingTest, QemuServesOurs) {
  Run("qemu-img create -q -f qcow2 a 4M && qemu-img bitmap --add -g 64k a b");
  {
    auto layer = OpenLayer("a", true);
    ASSERT_TRUE(Write(*layer, 1 * kMiB, Contents(65536)));
    ASSERT_TRUE(Write(*layer, 2 * kMiB + 5, Contents(65536)));
  }
  Run("qemu-nbd -r -f qcow2 -B b -k $PWD/s --fork --pid-file=$PWD/pid a && "
      "nbdinfo --map=qemu:dirty-bitmap:b 'nbd+unix:///?socket='$PWD/s > map; kill $(cat pid) 2> "
      "/dev/null || true");
  Outcome map = Shell("cd " + Path("") + " && awk '$3 == 1 {print $1, $2}' map");
  EXPECT_EQ(map.output, "1048576 65536\n2097152 131072\n");
}

// After a snapshot is applied everything may differ.
TEST_F(BitmapTrackingTest, GoingBackMarksEverything) {
  Create("a", 4 * kMiB, {});
  auto layer = OpenLayer("a", true);
  ASSERT_TRUE(layer->bitmapper()->AddBitmap({.name = "b"}));
  ASSERT_TRUE(layer->snapshotter()->CreateSnapshot("s"));
  ASSERT_TRUE(Write(*layer, 0, Contents(5)));
  ASSERT_TRUE(layer->bitmapper()->ClearBitmap("b"));
  ASSERT_TRUE(layer->snapshotter()->ApplySnapshot("s"));
  EXPECT_THAT(DirtyOf(*layer, "b").value(), testing::ElementsAre(Range{0, 4 * kMiB}));
  layer.reset();
  ExpectClean("a", "applied");
}

// A bitmap that is to be trusted has every granule that differs from what the disk held when it was
// made; whenever the power fails.
TEST_F(BitmapTrackingTest, PowerCutsNeverLoseAWrite) {
  for (const char* options : {"cluster_size=512", "cluster_size=4k", "preallocation=metadata"}) {
    constexpr uint64_t kSize = 1'500'160;
    MemoryStore image;
    CreateOptions create{.size = kSize, .options = OptionsOf(options)};
    if (create.options.contains("preallocation")) create.options["cluster_size"] = "4k";
    ASSERT_TRUE(CreateQcow2(image, create));
    CrashRecorder recorder;
    uint64_t made = 0;
    model::Random random(5);
    {
      auto layer = OpenQcow2(recorder.NewStore(image), {.writable = true});
      ASSERT_TRUE(layer) << layer.error().text();
      ASSERT_TRUE((*layer)->bitmapper()->AddBitmap({.name = "b", .granularity = 4096}));
      made = recorder.boundary();
      for (int i = 0; i < 12; ++i) {
        Contents bytes(1 + random.Below(9000));
        random.Fill(bytes);
        ASSERT_TRUE(Write(**layer, random.Below(kSize - bytes.size()), ConstBytes(bytes)));
        if (i == 6) {
          ASSERT_TRUE((*layer)->Flush());
        }
        if (i == 9) {
          ASSERT_TRUE((*layer)->bitmapper()->EnableBitmap("b", true));  // stores them
        }
      }
    }
    size_t trusted = 0;
    for (uint64_t cut = made; cut <= recorder.boundary(); ++cut) {
      for (uint64_t seed = 0; seed < 5; ++seed) {
        SCOPED_TRACE(
            fmt::format("{} cut {} of {} seed {}", options, cut, recorder.boundary(), seed));
        auto disk = recorder.Crash(cut, seed);
        auto sound = IsSound(*disk);
        ASSERT_TRUE(sound) << sound.error().text();
        ASSERT_TRUE(*sound);
        auto layer = OpenQcow2(std::make_unique<WrapperStore>(*disk), {});
        ASSERT_TRUE(layer) << layer.error().text();
        if ((*layer)->info().bitmaps.at(0).in_use) continue;
        ++trusted;
        Contents now(kSize);
        ASSERT_TRUE(Read(**layer, 0, Bytes(now)));
        const std::vector<Range> dirty = DirtyOf(**layer, "b").value();
        for (Range range : dirty) {
          std::ranges::fill(std::span(now).subspan(range.offset, range.length), std::byte{0});
        }
        ASSERT_TRUE(IsZero(now)) << "a write that is not marked";
      }
    }
    EXPECT_GT(trusted, 10u);
  }
}

TEST_F(BitmapTrackingTest, FailuresNeverLoseAWrite) {
  constexpr uint64_t kSize = 600'064;
  MemoryStore image;
  ASSERT_TRUE(CreateQcow2(image, {.size = kSize, .options = OptionsOf("cluster_size=4k")}));
  {
    auto layer = OpenQcow2(std::make_unique<WrapperStore>(image), {.writable = true});
    ASSERT_TRUE((*layer)->bitmapper()->AddBitmap({.name = "b", .granularity = 512}));
  }
  for (uint64_t k = 0;; ++k) {
    SCOPED_TRACE(k);
    auto disk = image.Clone();
    FaultPlan plan(k, FaultPlan::kAny, EIO, /*for_ever=*/k % 2 == 0);
    {
      auto layer =
          OpenQcow2(std::make_unique<FaultStore>(std::make_unique<WrapperStore>(*disk), plan),
                    {.writable = true});
      for (uint64_t at : {5000u, 200'000u, 5200u, 599'000u}) {
        if (layer) (void)Write(**layer, at, Contents(700, std::byte{7})).has_value();
      }
    }
    auto layer = OpenQcow2(std::make_unique<WrapperStore>(*disk), {});
    ASSERT_TRUE(layer) << layer.error().text();
    if (!(*layer)->info().bitmaps.at(0).in_use) {
      Contents now(kSize);
      ASSERT_TRUE(Read(**layer, 0, Bytes(now)));
      const std::vector<Range> dirty = DirtyOf(**layer, "b").value();
      for (Range range : dirty) {
        std::ranges::fill(std::span(now).subspan(range.offset, range.length), std::byte{0});
      }
      ASSERT_TRUE(IsZero(now)) << "a write that is not marked";
    } else {
      ASSERT_TRUE(plan.fired());
    }
    if (!plan.fired()) break;
  }
}

// Many at once, beside somebody who asks.
TEST_F(BitmapTrackingTest, WritersAtOnce) {
  MemoryStore image;
  constexpr uint64_t kSize = 16 * kMiB;
  ASSERT_TRUE(CreateQcow2(image, {.size = kSize, .options = OptionsOf("cluster_size=4k")}));
  Expected expected(4096);
  {
    auto layer = OpenQcow2(std::make_unique<WrapperStore>(image), {.writable = true});
    ASSERT_TRUE((*layer)->bitmapper()->AddBitmap({.name = "b", .granularity = 4096}));
    std::vector<std::jthread> writers;
    for (uint64_t id = 0; id < 4; ++id) {
      model::Random random(id);
      std::vector<Range> writes;
      for (int i = 0; i < 200; ++i) {
        writes.push_back({random.Below(kSize - 9000), 1 + random.Below(9000)});
        expected.Mark(writes.back());
      }
      writers.emplace_back([&layer, writes] {
        for (Range each : writes) {
          ASSERT_TRUE(Write(**layer, each.offset, Contents(each.length, std::byte{1})));
        }
      });
    }
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(DirtyOf(**layer, "b"));
  }
  EXPECT_EQ(LookAtBitmaps(image).value().at("b").set, expected.bits());
}

}  // namespace
}  // namespace platter::qcow2
