// The contract of io/layer.h on qcow2, under many interleavings of a few threads: what the toy
// layer's test shows of the contract itself (tests/schedule), here of this implementation's locks.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "base/check.h"
#include "formats/qcow2/qcow2_check.h"
#include "formats/qcow2/qcow2_subjects_testing.h"
#include "io/engine/engine.h"
#include "tests/schedule/scheduler.h"
#include "tests/schedule/yielding.h"

namespace platter::qcow2 {
namespace {

using schedule::Scenario;

constexpr uint64_t kCluster = 512;

// An image of 512-byte clusters in memory, each L2 table of which maps 32 KiB.
struct Bench {
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

  Bench() : memory(Empty().Clone()), store(*memory), layer(*OpenImage(Setup(), store, nullptr)) {}
  void Put(Range range, int value) {
    std::vector<std::byte> bytes(range.length, static_cast<std::byte>(value));
    CHECK(Write(*layer, range.offset, ConstBytes(bytes)));
  }
  std::vector<std::byte> Get(Range range) {
    std::vector<std::byte> bytes(range.length);
    CHECK(Read(*layer, range.offset, Bytes(bytes)));
    return bytes;
  }
  static std::string Judge(ConstBytes bytes, std::initializer_list<int> values) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (std::ranges::find(values, std::to_integer<int>(bytes[i])) == values.end()) {
        return fmt::format("byte {} is {:#x}", i, std::to_integer<int>(bytes[i]));
      }
    }
    return "";
  }
  std::string Expect(Range range, std::initializer_list<int> values) {
    return Judge(Get(range), values);
  }
  // After the layer is closed the image is sound, to the last leak.
  std::string Close() {
    layer.reset();
    auto report = CheckQcow2(*memory, OpenOptions{}, CheckOptions{});
    if (!report) return report.error().text();
    return report->findings.empty() ? "" : report->findings[0].text;
  }

  std::unique_ptr<MemoryStore> memory;
  schedule::YieldStore store;
  std::unique_ptr<Layer> layer;
};

std::string First(std::initializer_list<std::string> verdicts) {
  for (const std::string& verdict : verdicts) {
    if (!verdict.empty()) return verdict;
  }
  return "";
}

void ExpectSound(const schedule::MakeScenario& make) {
  schedule::Outcome few = schedule::ExploreAll(make, 2, 1500);
  EXPECT_EQ(few.failure, "") << "after " << few.runs << " runs";
  schedule::Outcome random = schedule::ExploreRandom(make, 1, 500);
  EXPECT_EQ(random.failure, "");
}

TEST(Qcow2Schedule, TwoWritersInAFreshClusterAndAFlush) {
  ExpectSound([]() -> Scenario {
    auto bench = std::make_shared<Bench>();
    return {{[=] { bench->Put({0, 100}, 1); }, [=] { bench->Put({200, 100}, 2); },
             [=] { CHECK(bench->layer->Flush()); }},
            [=] {
              return First({bench->Expect({0, 100}, {1}), bench->Expect({200, 100}, {2}),
                            bench->Expect({100, 100}, {0}), bench->Close()});
            }};
  });
}

TEST(Qcow2Schedule, TwoWritersMakeOneTable) {
  ExpectSound([]() -> Scenario {
    auto bench = std::make_shared<Bench>();
    return {{[=] { bench->Put({0, kCluster}, 1); }, [=] { bench->Put({5 * kCluster, 10}, 2); }},
            [=] {
              return First({bench->Expect({0, kCluster}, {1}),
                            bench->Expect({5 * kCluster, 10}, {2}), bench->Close()});
            }};
  });
}

TEST(Qcow2Schedule, AReaderNeverSeesAnotherClustersBytes) {
  ExpectSound([]() -> Scenario {
    auto bench = std::make_shared<Bench>();
    bench->Put({0, kCluster}, 0xa);
    CHECK(bench->layer->Flush());
    auto seen = std::make_shared<std::vector<std::byte>>();
    return {{[=] { *seen = bench->Get({0, kCluster}); },
             [=] {
               CHECK(Discard(*bench->layer, {0, kCluster}));
               CHECK(bench->layer->Flush());
               bench->Put({kCluster, kCluster}, 0xb);
             }},
            [=] {
              return First({Bench::Judge(*seen, {0xa, 0}), bench->Expect({0, kCluster}, {0}),
                            bench->Expect({kCluster, kCluster}, {0xb}), bench->Close()});
            }};
  });
}

TEST(Qcow2Schedule, AWriterInPlaceNeverHitsAnotherCluster) {
  ExpectSound([]() -> Scenario {
    auto bench = std::make_shared<Bench>();
    bench->Put({0, kCluster}, 0xa);
    CHECK(bench->layer->Flush());
    return {{[=] { bench->Put({10, 20}, 0xc); },
             [=] {
               CHECK(Discard(*bench->layer, {0, kCluster}));
               CHECK(bench->layer->Flush());
               bench->Put({kCluster, kCluster}, 0xb);
             }},
            [=] {
              return First({bench->Expect({kCluster, kCluster}, {0xb}),
                            bench->Expect({10, 20}, {0, 0xc}), bench->Expect({30, 400}, {0}),
                            bench->Close()});
            }};
  });
}

TEST(Qcow2Schedule, FlushesAndDiscardsAtOnce) {
  ExpectSound([]() -> Scenario {
    auto bench = std::make_shared<Bench>();
    bench->Put({0, 8 * kCluster}, 0xa);
    return {{[=] {
               CHECK(bench->layer->Flush());
               bench->Put({100 * kCluster, 2 * kCluster}, 0xb);
             },
             [=] {
               CHECK(Discard(*bench->layer, {0, 4 * kCluster}));
               CHECK(bench->layer->Flush());
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
