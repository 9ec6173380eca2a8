// The contract of io/layer.h on qcow2, under many interleavings of a few threads: what the toy
// layer's test shows of the contract itself (tests/schedule), here of this implementation's locks.
#include <gtest/gtest.h>

#include <memory>

#include "base/check.h"
#include "formats/qcow2/qcow2_check.h"
#include "formats/qcow2/qcow2_subjects_testing.h"
#include "io/engine/engine.h"
#include "tests/schedule/bench.h"
#include "tests/schedule/scheduler.h"
#include "tests/schedule/yielding.h"

namespace platter::qcow2 {
namespace {

using schedule::First;
using schedule::Scenario;

constexpr uint64_t kCluster = 512;

// An image of 512-byte clusters in memory, each L2 table of which maps 32 KiB.
struct Qcow2Bench final : schedule::Bench {
  static const MemoryStore& Empty() {
    static const auto image = [] {
      auto store = std::make_unique<MemoryStore>();
      CHECK(CreateImage(Setup(), *store, nullptr));
      return store;
    }();
    return *image;
  }
  static Configuration Setup() {
    return {.name = "small", .size = 256 * kCluster, .cluster = kCluster};
  }

  Qcow2Bench()
      : Bench(kCluster),
        memory(Empty().Clone()),
        store(*memory),
        image(*OpenImage(Setup(), store, nullptr)) {}
  Layer& layer() override { return *image; }
  // After the layer is closed the image is sound, to the last leak.
  std::string Close() override {
    image.reset();
    auto report = CheckQcow2(*memory, OpenOptions{}, CheckOptions{});
    if (!report) return report.error().text();
    return report->findings.empty() ? "" : report->findings[0].text;
  }

  std::unique_ptr<MemoryStore> memory;
  schedule::YieldStore store;
  std::unique_ptr<Layer> image;
};

std::shared_ptr<Qcow2Bench> NewBench() { return std::make_shared<Qcow2Bench>(); }

void ExpectSound(const schedule::MakeScenario& make) {
  schedule::Outcome few = schedule::ExploreAll(make, 2, 1500);
  EXPECT_EQ(few.failure, "") << "after " << few.runs << " runs";
  schedule::Outcome random = schedule::ExploreRandom(make, 1, 500);
  EXPECT_EQ(random.failure, "");
}

TEST(Qcow2Schedule, TwoWritersInAFreshClusterAndAFlush) {
  ExpectSound([]() -> Scenario {
    auto bench = NewBench();
    Scenario scenario = schedule::TwoWriters(bench);
    scenario.threads.push_back([=] { CHECK(bench->layer().Flush()); });
    return scenario;
  });
}

TEST(Qcow2Schedule, TwoWritersMakeOneTable) {
  ExpectSound([]() -> Scenario {
    auto bench = NewBench();
    return {{[=] { bench->Put({0, kCluster}, 1); }, [=] { bench->Put({5 * kCluster, 10}, 2); }},
            [=] {
              return First({bench->Expect({0, kCluster}, {1}),
                            bench->Expect({5 * kCluster, 10}, {2}), bench->Close()});
            }};
  });
}

TEST(Qcow2Schedule, OverlappingWriters) {
  ExpectSound([] { return schedule::OverlappingWriters(NewBench()); });
}

TEST(Qcow2Schedule, AReaderNeverSeesAnotherClustersBytes) {
  ExpectSound([] { return schedule::ReaderAgainstReuse(NewBench()); });
}

TEST(Qcow2Schedule, AWriterInPlaceNeverHitsAnotherCluster) {
  ExpectSound([] { return schedule::WriterAgainstReuse(NewBench()); });
}

TEST(Qcow2Schedule, NothingIsSeenBeforeItIsWhole) {
  ExpectSound([] { return schedule::ReaderAgainstFreshUnit(NewBench()); });
}

TEST(Qcow2Schedule, DiscardTakesItsTurn) {
  ExpectSound([] { return schedule::DiscardAgainstWriter(NewBench(), true); });
  ExpectSound([] { return schedule::DiscardAgainstWriter(NewBench(), false); });
}

TEST(Qcow2Schedule, FlushesAndDiscardsAtOnce) {
  ExpectSound([]() -> Scenario {
    auto bench = NewBench();
    bench->Put({0, 8 * kCluster}, 0xa);
    return {{[=] {
               CHECK(bench->layer().Flush());
               bench->Put({100 * kCluster, 2 * kCluster}, 0xb);
             },
             [=] {
               CHECK(Discard(bench->layer(), {0, 4 * kCluster}));
               CHECK(bench->layer().Flush());
             },
             [=] { bench->Put({2 * kCluster + 7, kCluster}, 0xc); }},
            [=] {
              return First({bench->Expect({100 * kCluster, 2 * kCluster}, {0xb}),
                            bench->Expect({0, 2 * kCluster}, {0}),
                            bench->Expect({2 * kCluster + 7, kCluster}, {0, 0xc}),
                            bench->Expect({4 * kCluster, 4 * kCluster}, {0xa}), bench->Close()});
            }};
  });
}

}  // namespace
}  // namespace platter::qcow2
