// Compacting: smaller, the same content, sound for QEMU, whenever the power fails.
#include "formats/qcow2/qcow2_compact.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/qcow2/qcow2_bitmaps_testing.h"
#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_layer.h"
#include "formats/qcow2/qcow2_subjects_testing.h"
#include "formats/qcow2/qcow2_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/fault_store.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/random.h"

namespace platter::qcow2 {
namespace {

using Contents = std::vector<std::byte>;

// The disk, its snapshots and its bitmaps.
struct State {
  Contents disk;
  std::map<std::string, Contents> snapshots;
  SeenBitmaps bitmaps;
  friend bool operator==(const State&, const State&) = default;
};

Result<Contents> ReadAs(Store& store, const Secret* secret, const std::string& snapshot) {
  auto layer = TRY(
      OpenQcow2(std::make_unique<WrapperStore>(store), {.secret = secret, .snapshot = snapshot}));
  Contents bytes(layer->info().size);
  TRY(Read(*layer, 0, Bytes(bytes)));
  return bytes;
}

Result<State> StateOf(Store& store, const Secret* secret = nullptr) {
  State state;
  state.disk = TRY(ReadAs(store, secret, ""));
  auto layer = TRY(OpenQcow2(std::make_unique<WrapperStore>(store), {.secret = secret}));
  for (const SnapshotInfo& snapshot : layer->info().snapshots) {
    state.snapshots[snapshot.name] = TRY(ReadAs(store, secret, snapshot.name));
  }
  state.bitmaps = TRY(LookAtBitmaps(store));
  return state;
}

// Written at random, with snapshots and bitmaps, and then mostly dropped.
Result<> FillAndDrop(Store& store, const Secret* secret, uint64_t size, uint64_t seed,
                     bool snapshots, bool bitmaps) {
  model::Random random(seed);
  auto layer =
      TRY(OpenQcow2(std::make_unique<WrapperStore>(store), {.writable = true, .secret = secret}));
  if (bitmaps) TRY(layer->bitmapper()->AddBitmap({.name = "b", .granularity = 512}));
  auto write = [&](int times) -> Result<> {
    for (int i = 0; i < times; ++i) {
      Contents bytes(1 + random.Below(60000));
      random.Fill(bytes);
      TRY(Write(*layer, random.Below(size - bytes.size()), ConstBytes(bytes)));
    }
    return {};
  };
  TRY(write(12));
  if (snapshots) TRY(layer->snapshotter()->CreateSnapshot("one"));
  TRY(write(6));
  if (snapshots) TRY(layer->snapshotter()->CreateSnapshot("two"));
  TRY(Discard(*layer, {0, size / 2}));
  TRY(write(2));
  if (snapshots) TRY(layer->snapshotter()->DeleteSnapshot("one"));
  return layer->Flush();
}

class CompactTest : public QemuTest {};

TEST_F(CompactTest, TheSameInLess) {
  uint64_t seed = 40;
  for (const char* options :
       {"cluster_size=512", "cluster_size=4k", "cluster_size=4k,compat=0.10",
        "cluster_size=16k,extended_l2=on", "cluster_size=4k,refcount_bits=64", ""}) {
    SCOPED_TRACE(fmt::format("{} seed {}", options, ++seed));
    const uint64_t size = *options == 0 ? 8 * kMiB : 2 * kMiB;
    Create("a", size, OptionsOf(options));
    auto file = OpenFile("a");
    const bool v3 = std::string(options).find("compat") == std::string::npos;
    ASSERT_TRUE(FillAndDrop(*file, nullptr, size, seed, true, v3));
    const State before = StateOf(*file).value();
    const uint64_t large = file->Size().value();
    auto report = CompactQcow2(*file, {.writable = true});
    ASSERT_TRUE(report) << report.error().text();
    EXPECT_LT(report->size_after, large);
    EXPECT_GT(report->moved, 0u);
    EXPECT_EQ(file->Size().value(), report->size_after);
    auto after = StateOf(*file);
    ASSERT_TRUE(after) << after.error().text();
    EXPECT_TRUE(*after == before);
    auto again = CompactQcow2(*file, {.writable = true});
    ASSERT_TRUE(again);
    EXPECT_EQ(again->size_after, report->size_after);
    file.reset();
    ExpectClean("a", options);
    // No holes are left, but for a run that found none of its length.
    Outcome check = Shell("qemu-img check --output=json " + Path("a"));
    EXPECT_THAT(check.output, testing::Not(testing::HasSubstr("leaks")));
  }
}

TEST_F(CompactTest, CompressedOfQemu) {
  ASSERT_EQ(Shell("cd " + Path("") +
                  " && qemu-img create -q -f raw r 4M && qemu-io -f raw -c 'write -P 1 0 1M' -c "
                  "'write -P 2 1M 2M' r && qemu-img convert -c -O qcow2 -o cluster_size=4k r a && "
                  "qemu-io -c 'write -P 3 0 64k' -c 'write -P 4 2M 64k' a && "
                  "qemu-io -c 'discard 0 1M' a && qemu-img convert -O raw a want")
                .exit_code,
            0);
  auto file = OpenFile("a");
  auto report = CompactQcow2(*file, {.writable = true});
  ASSERT_TRUE(report) << report.error().text();
  file.reset();
  ExpectClean("a", "compressed");
  EXPECT_EQ(Shell("qemu-img compare -F raw " + Path("a") + " " + Path("want")).exit_code, 0);
}

// The bytes of an encrypted cluster depend on where it is.
TEST_F(CompactTest, Encrypted) {
  const Secret secret(AsBytes(std::string_view("corpus")));
  Create("a", 2 * kMiB,
         {{"encrypt.format", "luks"}, {"encrypt.iter-time", "10"}, {"cluster_size", "4k"}},
         &secret);
  auto file = OpenFile("a");
  ASSERT_TRUE(FillAndDrop(*file, &secret, 2 * kMiB, 5, true, false));
  const State before = StateOf(*file, &secret).value();
  EXPECT_EQ(CompactQcow2(*file, {.writable = true}).error().code(), Code::kRefused);
  auto report = CompactQcow2(*file, {.writable = true, .secret = &secret});
  ASSERT_TRUE(report) << report.error().text();
  EXPECT_GT(report->moved, 0u);
  EXPECT_TRUE(StateOf(*file, &secret).value() == before);
  file.reset();
  Outcome check = Shell(
      "qemu-img check --object secret,id=s,data=corpus --image-opts "
      "driver=qcow2,file.filename=" +
      Path("a") + ",encrypt.key-secret=s");
  EXPECT_EQ(check.exit_code, 0) << check.output;
}

TEST(CompactCrash, TheSameAtEveryPowerCut) {
  for (const char* options : {"cluster_size=4k", "cluster_size=512"}) {
    constexpr uint64_t kSize = 400 * kKiB;
    MemoryStore image;
    ASSERT_TRUE(CreateQcow2(image, {.size = kSize, .options = OptionsOf(options)}));
    ASSERT_TRUE(FillAndDrop(image, nullptr, kSize, 9, true, true));
    const State before = StateOf(image).value();
    CrashRecorder recorder;
    {
      auto store = recorder.NewStore(image);
      auto report = CompactQcow2(*store, {.writable = true});
      ASSERT_TRUE(report) << report.error().text();
      ASSERT_GT(report->moved, 0u);
    }
    for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
      for (uint64_t seed = 0; seed < 3; ++seed) {
        SCOPED_TRACE(
            fmt::format("{} cut {} of {} seed {}", options, cut, recorder.boundary(), seed));
        auto disk = recorder.Crash(cut, seed);
        auto sound = IsSound(*disk);
        ASSERT_TRUE(sound) << sound.error().text();
        auto state = StateOf(*disk);
        ASSERT_TRUE(state) << state.error().text();
        ASSERT_TRUE(*state == before);
        if (cut % 16 != 0) continue;
        // The next run goes on.
        auto again = CompactQcow2(*disk, {.writable = true});
        ASSERT_TRUE(again) << again.error().text();
        ASSERT_TRUE(StateOf(*disk).value() == before);
      }
    }
  }
}

TEST(CompactFault, AFailedCallDoesNoHarm) {
  constexpr uint64_t kSize = 400 * kKiB;
  MemoryStore image;
  ASSERT_TRUE(CreateQcow2(image, {.size = kSize, .options = OptionsOf("cluster_size=4k")}));
  ASSERT_TRUE(FillAndDrop(image, nullptr, kSize, 3, true, true));
  const State before = StateOf(image).value();
  for (uint64_t k = 0;; k += 1 + k / 40) {
    SCOPED_TRACE(k);
    auto disk = image.Clone();
    FaultPlan plan(k, FaultPlan::kAny, EIO, /*for_ever=*/k % 2 == 0);
    FaultStore store(std::make_unique<WrapperStore>(*disk), plan);
    const bool done = CompactQcow2(store, {.writable = true}).has_value();
    auto sound = IsSound(*disk);
    ASSERT_TRUE(sound) << sound.error().text();
    ASSERT_TRUE(StateOf(*disk).value() == before);
    if (!plan.fired()) {
      ASSERT_TRUE(done);
      break;
    }
  }
}

}  // namespace
}  // namespace platter::qcow2
