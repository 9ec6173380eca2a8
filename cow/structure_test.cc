// Guest operations against snapshots, bitmaps, resizing and commit, under many interleavings: a
// snapshot holds the disk as it was at one moment, and nothing that was written is lost.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "base/check.h"
#include "cow/commit.h"
#include "cow/disk.h"
#include "formats/format.h"
#include "io/bitmapper.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/schedule/bench.h"
#include "tests/schedule/scheduler.h"
#include "tests/schedule/yielding.h"

namespace platter {
namespace {

using schedule::First;
using schedule::Scenario;

constexpr uint64_t kCluster = 512;
constexpr uint64_t kSize = 64 * kCluster;

const Format& Qcow2() { return **FindFormat("qcow2"); }

std::unique_ptr<Layer> OpenQcow2(Store& store, OpenOptions options) {
  auto layer = Qcow2().open(std::make_unique<WrapperStore>(store), options);
  CHECK(layer.has_value());
  return std::move(*layer);
}

// A disk on which each step of the contract and of the store is a yield point.
struct DiskBench final : schedule::Bench {
  explicit DiskBench(bool overlay = false)
      : Bench(kCluster), store((MakeImage(memory, overlay), memory)) {
    std::vector<std::unique_ptr<Layer>> layers;
    top = OpenQcow2(store, {.writable = true});
    layers.push_back(std::make_unique<PassOn>(*top));
    disk = Disk::FromLayers(std::move(layers));
  }

  static void MakeImage(Store& store, bool overlay) {
    CreateOptions create{.size = kSize, .options = {{"cluster_size", "512"}}};
    if (overlay) create.parent = Reference{Reference::kParent, "below", "raw"};
    CHECK(Qcow2().create(store, create).has_value());
  }

  Layer& layer() override { return *disk; }

  std::string Close() override {
    disk.reset();
    top.reset();
    auto report = Qcow2().check(memory, {}, {});
    if (!report) return report.error().text();
    return report->findings.empty() ? "" : report->findings[0].text;
  }

  // What `range` of a snapshot reads as in the file as it is.
  std::vector<std::byte> InSnapshot(const std::string& snapshot, Range range) {
    auto layer = OpenQcow2(memory, {.snapshot = snapshot});
    std::vector<std::byte> bytes(range.length);
    CHECK(Read(*layer, range.offset, Bytes(bytes)).has_value());
    return bytes;
  }

  // As YieldLayer, with what may be changed of the layer.
  struct PassOn final : schedule::YieldLayer {
    using YieldLayer::YieldLayer;
    Snapshotter* snapshotter() override { return base_.snapshotter(); }
    Bitmapper* bitmapper() override { return base_.bitmapper(); }
  };

  MemoryStore memory;
  schedule::YieldStore store;
  std::unique_ptr<Layer> top;
  std::unique_ptr<Disk> disk;
};

void ExpectSound(const schedule::MakeScenario& make) {
  schedule::Outcome few = schedule::ExploreAll(make, 2, 1500);
  EXPECT_EQ(few.failure, "") << "after " << few.runs << " runs";
  EXPECT_GT(few.runs, 10u);
  schedule::Outcome random = schedule::ExploreRandom(make, 1, 500);
  EXPECT_EQ(random.failure, "");
}

// Whatever shows that guest writes and changes of structure do not mix is tried with the lock,
// where it must never be seen, and past it, where it must be found.
enum class Lock : bool { kAround, kPast };

// One writer in place, one of a fresh cluster after a write in place, and a snapshot.
Scenario SnapshotUnderWriters(Lock lock) {
  auto bench = std::make_shared<DiskBench>();
  const Range one{0, kCluster}, two{kCluster, kCluster}, fresh{8 * kCluster, kCluster};
  bench->Put({0, 2 * kCluster}, 1);
  auto taken = std::make_shared<std::vector<std::byte>>();
  Layer& layer = lock == Lock::kAround ? bench->layer() : *bench->top;
  return {
      {[=] { bench->Put(one, 2); },
       [=] {
         bench->Put(two, 3);
         bench->Put(fresh, 4);
       },
       [=, &layer] {
         CHECK(layer.snapshotter()->CreateSnapshot("s").has_value());
         *taken = bench->InSnapshot("s", {0, kSize});
       }},
      [=]() -> std::string {
        auto wrong = First({bench->Expect(one, {2}), bench->Expect(two, {3}),
                            bench->Expect(fresh, {4}), bench->Close()});
        if (!wrong.empty()) return wrong;
        if (bench->InSnapshot("s", {0, kSize}) != *taken) return "the snapshot has changed";
        auto held = [&](Range range) { return ConstBytes(*taken).subspan(range.offset, kCluster); };
        wrong = First({schedule::Judge(held(one), one.offset, {1, 2}),
                       schedule::Judge(held(two), two.offset, {1, 3}),
                       schedule::Judge(held(fresh), fresh.offset, {0, 4})});
        if (!wrong.empty()) return wrong;
        const bool later = held(fresh)[0] == std::byte{4}, earlier = held(two)[0] == std::byte{3};
        return later && !earlier ? "the snapshot has a write without the one before it" : "";
      }};
}

TEST(Structure, ASnapshotIsOfOneMoment) {
  ExpectSound([] { return SnapshotUnderWriters(Lock::kAround); });
}
TEST(Structure, PastTheLockASnapshotIsNot) {
  auto make = [] { return SnapshotUnderWriters(Lock::kPast); };
  EXPECT_NE(schedule::ExploreAll(make, 1).failure, "");
}

// A write that ends after a bitmap has begun to follow the disk is in it.
Scenario BitmapUnderAWriter(Lock lock) {
  auto bench = std::make_shared<DiskBench>();
  bench->Put({0, 2 * kCluster}, 1);
  auto ended = std::make_shared<bool>(false), expected = std::make_shared<bool>(false);
  Layer& layer = lock == Lock::kAround ? bench->layer() : *bench->top;
  return {
      {[=] {
         bench->Put({0, kCluster}, 2);
         *ended = true;
       },
       [=, &layer] {
         CHECK(layer.bitmapper()->AddBitmap({.name = "b", .granularity = kCluster}).has_value());
         *expected = !*ended;
       }},
      [=]() -> std::string {
        bool dirty = false;
        auto see = [&](Range) { return dirty = true; };
        CHECK(bench->disk->bitmapper()->VisitDirty("b", {0, kCluster}, see).has_value());
        if (*expected && !dirty) return "the bitmap lacks a write";
        return First({bench->Expect({0, kCluster}, {2}), bench->Close()});
      }};
}

TEST(Structure, ABitmapMissesNoWrite) {
  ExpectSound([] { return BitmapUnderAWriter(Lock::kAround); });
}
TEST(Structure, PastTheLockABitmapDoes) {
  auto make = [] { return BitmapUnderAWriter(Lock::kPast); };
  EXPECT_NE(schedule::ExploreAll(make, 1).failure, "");
}

TEST(Structure, SnapshotsComeAndGoUnderAWriter) {
  ExpectSound([]() -> Scenario {
    auto bench = std::make_shared<DiskBench>();
    bench->Put({0, kCluster}, 1);
    return {{[=] {
               bench->Put({100, 200}, 2);  // copies the rest of its cluster up, if it has to
               CHECK(Discard(bench->layer(), {2 * kCluster, kCluster}).has_value());
             },
             [=] {
               Snapshotter& snapshots = *bench->disk->snapshotter();
               CHECK(snapshots.CreateSnapshot("s").has_value());
               CHECK(snapshots.DeleteSnapshot("s").has_value());
             }},
            [=] {
              return First({bench->Expect({100, 200}, {2}), bench->Expect({0, 100}, {1}),
                            bench->Expect({300, 212}, {1}), bench->Close()});
            }};
  });
}

// A base, an overlay of it with two clusters of its own, and the disk that guests see of them.
struct ChainBench {
  ChainBench() {
    base.Put({0, 6 * kCluster}, 1);
    top.Put({kCluster, 2 * kCluster}, 2);
    std::vector<std::unique_ptr<Layer>> layers;
    layers.push_back(std::make_unique<DiskBench::PassOn>(*top.top));
    layers.push_back(std::make_unique<DiskBench::PassOn>(*base.top));
    disk = Disk::FromLayers(std::move(layers));
  }

  // The steps of CommitInto without its lock.
  void CommitPastTheLock() {
    CopyOptions copy;
    copy.threads = 1;
    copy.skip_parent = true;
    CHECK(Copy(*top.top, base.layer(), {0, kSize}, copy).has_value());
    CHECK(base.layer().Flush().has_value());
    CHECK(DropOwn(*top.top).has_value());
  }

  std::string Expect(Range range, std::initializer_list<int> values) {
    std::vector<std::byte> bytes(range.length);
    CHECK(Read(*disk, range.offset, Bytes(bytes)).has_value());
    return schedule::Judge(bytes, range.offset, values);
  }

  std::string Close() {
    disk.reset();
    return First({top.Close(), base.Close()});
  }

  DiskBench base, top{/*overlay=*/true};
  std::unique_ptr<Disk> disk;
};

Scenario CommitUnderAWriter(Lock lock) {
  auto bench = std::make_shared<ChainBench>();
  const Range held{kCluster, kCluster}, below{4 * kCluster + 100, 200};
  return {{[=] {
             auto put = [&](Range range, int value) {
               const std::vector<std::byte> bytes(range.length, static_cast<std::byte>(value));
               CHECK(Write(*bench->disk, range.offset, ConstBytes(bytes)).has_value());
             };
             put(held, 3);
             put(below, 4);  // copies the rest of its cluster up from the base
           },
           [=] {
             if (lock == Lock::kPast) return bench->CommitPastTheLock();
             CopyOptions copy;
             copy.threads = 1;
             CHECK(CommitInto(*bench->disk, bench->base.layer(), copy, /*empty=*/true).has_value());
           }},
          [=] {
            return First({bench->Expect(held, {3}), bench->Expect({2 * kCluster, kCluster}, {2}),
                          bench->Expect(below, {4}), bench->Expect({4 * kCluster, 100}, {1}),
                          bench->Expect({4 * kCluster + 300, 212}, {1}), bench->Close()});
          }};
}

TEST(Structure, ACommitLosesNoWrite) {
  ExpectSound([] { return CommitUnderAWriter(Lock::kAround); });
}
TEST(Structure, PastTheLockACommitDoes) {
  auto make = [] { return CommitUnderAWriter(Lock::kPast); };
  EXPECT_NE(schedule::ExploreAll(make, 1).failure, "");
}

// Who only reads may do so without the lock of who commits: other programs do.
TEST(Structure, AReaderDoesNotSeeACommit) {
  ExpectSound([]() -> Scenario {
    auto bench = std::make_shared<ChainBench>();
    auto seen = std::make_shared<std::string>();
    return {{[=] { bench->CommitPastTheLock(); },
             [=] {
               for (int i = 0; i < 2; ++i) {
                 std::vector<std::byte> bytes(4 * kCluster);
                 CHECK(Read(*bench->disk, 0, Bytes(bytes)).has_value());
                 *seen += First(
                     {schedule::Judge(ConstBytes(bytes).first(kCluster), 0, {1}),
                      schedule::Judge(ConstBytes(bytes).subspan(kCluster, 2 * kCluster), 512, {2}),
                      schedule::Judge(ConstBytes(bytes).last(kCluster), 1536, {1})});
               }
             }},
            [=] { return First({*seen, bench->Close()}); }};
  });
}

// Without the scheduler: all at once, as a server does it.
TEST(Structure, ManyThreads) {
  MemoryStore memory;
  DiskBench::MakeImage(memory, false);
  std::vector<std::unique_ptr<Layer>> layers;
  layers.push_back(OpenQcow2(memory, {.writable = true}));
  auto disk = Disk::FromLayers(std::move(layers));
  std::atomic<bool> stop{false};
  {
    std::vector<std::jthread> threads;
    for (uint64_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        std::vector<std::byte> bytes(kCluster, static_cast<std::byte>(t + 1));
        for (uint64_t i = 0; !stop; ++i) {
          const uint64_t at = (t * 20 + i % 20) * kCluster + 3;
          CHECK(Write(*disk, at, ConstBytes(bytes).first(300)).has_value());
          CHECK(Read(*disk, at, Bytes(bytes).first(300)).has_value());
          if (i % 7 == 0) CHECK(disk->Flush().has_value());
        }
      });
    }
    Bitmapper& bitmaps = *disk->bitmapper();
    auto visit = [](Range) { return true; };
    CHECK(bitmaps.AddBitmap({.name = "all", .granularity = kCluster}).has_value());
    for (int i = 0; i < 60; ++i) {
      CHECK(disk->snapshotter()->CreateSnapshot("s").has_value());
      CHECK(bitmaps.AddBitmap({.name = "b", .granularity = kCluster}).has_value());
      CHECK(bitmaps.VisitDirty("all", {0, kSize}, visit).has_value());
      CHECK(bitmaps.MergeBitmap("all", bitmaps, "b").has_value());
      CHECK(bitmaps.RemoveBitmap("b").has_value());
      CHECK(disk->snapshotter()->DeleteSnapshot("s").has_value());
    }
    CHECK(disk->resizer()->Resize(kSize * 2, Preallocation::kOff).has_value());
    stop = true;
  }
  disk.reset();
  auto report = Qcow2().check(memory, {}, {});
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->corruptions + report->errors, 0u);
}

}  // namespace
}  // namespace platter
