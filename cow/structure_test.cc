// Guest operations against snapshots, resizing and commit, under many interleavings: a snapshot
// holds the disk as it was at one moment, and nothing that was written is lost.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "base/check.h"
#include "cow/commit.h"
#include "cow/disk.h"
#include "formats/format.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_layer.h"
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

  // What `snapshot` reads as, once the disk is closed.
  std::string ExpectInSnapshot(const std::string& snapshot, Range range,
                               std::initializer_list<int> values) {
    auto layer = OpenQcow2(memory, {.snapshot = snapshot});
    std::vector<std::byte> bytes(range.length);
    CHECK(Read(*layer, range.offset, Bytes(bytes)).has_value());
    for (std::byte byte : bytes) {
      if (byte != bytes[0]) return fmt::format("snapshot: {} is mixed", range.offset);
    }
    return schedule::Judge(bytes, range.offset, values);
  }

  // As YieldLayer, with what may be changed of the layer.
  struct PassOn final : schedule::YieldLayer {
    using YieldLayer::YieldLayer;
    Snapshotter* snapshotter() override { return base_.snapshotter(); }
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

TEST(Structure, ASnapshotIsOfOneMoment) {
  ExpectSound([]() -> Scenario {
    auto bench = std::make_shared<DiskBench>();
    bench->Put({0, 2 * kCluster}, 1);
    return {
        {[=] { bench->Put({0, kCluster}, 2); },  // in place
         [=] { bench->Put({8 * kCluster, kCluster}, 3); },
         [=] { CHECK(bench->disk->snapshotter()->CreateSnapshot("s").has_value()); }},
        [=] {
          return First({bench->Expect({0, kCluster}, {2}), bench->Expect({kCluster, kCluster}, {1}),
                        bench->Expect({8 * kCluster, kCluster}, {3}), bench->Close(),
                        bench->ExpectInSnapshot("s", {0, kCluster}, {1, 2}),
                        bench->ExpectInSnapshot("s", {kCluster, kCluster}, {1}),
                        bench->ExpectInSnapshot("s", {8 * kCluster, kCluster}, {0, 3})});
        }};
  });
}

// The same without the lock: what it is there for.
TEST(Structure, WithoutTheLockItIsNot) {
  auto make = []() -> Scenario {
    auto bench = std::make_shared<DiskBench>();
    bench->Put({0, 2 * kCluster}, 1);
    return {{[=] { bench->Put({0, kCluster}, 2); },
             [=] {
               CHECK(bench->top->snapshotter()->CreateSnapshot("s").has_value());
               bench->Put({0, kCluster}, 4);
             }},
            [=] {
              auto wrong = First({bench->Expect({0, kCluster}, {2, 4}), bench->Close()});
              if (!wrong.empty()) return wrong;
              // The write that was under way may have changed the snapshot after it was taken: the
              // disk no longer has its bytes, the snapshot has.
              return bench->ExpectInSnapshot("s", {0, kCluster}, {1});
            }};
  };
  EXPECT_NE(schedule::ExploreAll(make, 2, 5000).failure, "");
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

// What an overlay holds goes into its base and is dropped from it, under a reader of both.
TEST(Structure, AReaderDoesNotSeeACommit) {
  ExpectSound([]() -> Scenario {
    auto base = std::make_shared<DiskBench>();
    auto top = std::make_shared<DiskBench>(/*overlay=*/true);
    base->Put({0, 6 * kCluster}, 1);
    top->Put({kCluster, 2 * kCluster}, 2);
    std::vector<std::unique_ptr<Layer>> layers;
    layers.push_back(std::make_unique<WrapperLayer>(*top->top));
    layers.push_back(std::make_unique<WrapperLayer>(*base->top));
    std::shared_ptr<Disk> chain = Disk::FromLayers(std::move(layers));
    auto seen = std::make_shared<std::string>();
    return {{[=] {
               CopyOptions copy;
               copy.threads = 1;
               copy.skip_parent = true;
               CHECK(Copy(*top->top, base->layer(), {0, kSize}, copy).has_value());
               CHECK(base->layer().Flush().has_value());
               CHECK(DropOwn(*top->top).has_value());
             },
             [=] {
               for (int i = 0; i < 2; ++i) {
                 std::vector<std::byte> bytes(4 * kCluster);
                 CHECK(Read(*chain, 0, Bytes(bytes)).has_value());
                 *seen += First(
                     {schedule::Judge(ConstBytes(bytes).first(kCluster), 0, {1}),
                      schedule::Judge(ConstBytes(bytes).subspan(kCluster, 2 * kCluster), 512, {2}),
                      schedule::Judge(ConstBytes(bytes).last(kCluster), 1536, {1})});
               }
             }},
            [=] {
              return First({*seen, base->Expect({kCluster, 2 * kCluster}, {2}), base->Close(),
                            top->Close()});
            }};
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
    for (int i = 0; i < 60; ++i) {
      CHECK(disk->snapshotter()->CreateSnapshot("s").has_value());
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
