// The contract of io/layer.h under every interleaving: each rule holds on the toy layer, and each
// one, broken on purpose, is missed by some schedule.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <array>
#include <optional>

#include "base/check.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/toy_layer.h"
#include "tests/schedule/bench.h"
#include "tests/schedule/scheduler.h"
#include "tests/schedule/yielding.h"

namespace platter::schedule {
namespace {

using Break = ToyLayer::Break;
constexpr uint32_t kCluster = 512;
constexpr uint64_t kSize = 8 * kCluster;

// Refuses writes that carry this byte.
constexpr std::byte kPoison{0xbd};
struct PoisonedStore : YieldStore {
  using Store::Write;
  using YieldStore::YieldStore;
  Result<> Write(uint64_t at, std::span<const iovec> from) override {
    sched::Yield("write");
    for (const iovec& piece : from) {
      if (std::memchr(piece.iov_base, static_cast<int>(kPoison), piece.iov_len)) {
        return Fail(Code::kIo, "poison");
      }
    }
    return base_.Write(at, from);
  }
};

// A toy disk on which every call of the contract and of the store is a yield point.
struct ToyBench final : Bench {
  explicit ToyBench(Break broken) : ToyBench(broken, std::make_unique<MemoryStore>()) {}
  ToyBench(Break broken, std::unique_ptr<Store> base)
      : Bench(kCluster), memory(std::move(base)), store(*memory) {
    options.size = kSize;
    options.cluster = kCluster;
    options.broken = broken;
    CHECK(ToyLayer::Create(store, options));
    toy = std::move(*ToyLayer::Open(store, options));
    yielding.emplace(*toy);
  }
  Layer& layer() override { return *yielding; }

  ToyLayer::Options options;
  std::unique_ptr<Store> memory;
  PoisonedStore store;
  std::unique_ptr<ToyLayer> toy;
  std::optional<YieldLayer> yielding;
};

std::shared_ptr<ToyBench> Toy(Break broken) { return std::make_shared<ToyBench>(broken); }

void ExpectSound(const MakeScenario& make, int preemptions) {
  Outcome all = ExploreAll(make, preemptions);
  EXPECT_EQ(all.failure, "") << "after " << all.runs << " runs";
  EXPECT_GT(all.runs, 10u);
  EXPECT_LT(all.runs, 200'000u) << "not all were tried";
  Outcome random = ExploreRandom(make, 1, 300);
  EXPECT_EQ(random.failure, "");
}

void ExpectFound(const MakeScenario& make, int preemptions) {
  Outcome all = ExploreAll(make, preemptions);
  EXPECT_NE(all.failure, "") << "not found in " << all.runs << " runs";
}

TEST(Contract, TwoWritersInAFreshClusterLoseNothing) {
  ExpectSound([] { return TwoWriters(Toy(Break::kNothing)); }, 3);
  ExpectFound([] { return TwoWriters(Toy(Break::kNoWait)); }, 2);
}

TEST(Contract, AReaderNeverSeesAnotherClustersBytes) {
  ExpectSound([] { return ReaderAgainstReuse(Toy(Break::kNothing)); }, 3);
  ExpectFound([] { return ReaderAgainstReuse(Toy(Break::kNoQuarantine)); }, 2);
}

TEST(Contract, AWriterInPlaceNeverHitsAnotherCluster) {
  ExpectSound([] { return WriterAgainstReuse(Toy(Break::kNothing)); }, 3);
  ExpectFound([] { return WriterAgainstReuse(Toy(Break::kNoQuarantine)); }, 2);
}

TEST(Contract, NothingIsSeenBeforeItIsWhole) {
  ExpectSound([] { return ReaderAgainstFreshUnit(Toy(Break::kNothing)); }, 3);
  ExpectFound([] { return ReaderAgainstFreshUnit(Toy(Break::kPublishEarly)); }, 1);
}

TEST(Contract, OverlappingReservationsWaitAndEnd) {
  ExpectSound([] { return OverlappingWriters(Toy(Break::kNothing)); }, 1);
}

TEST(Contract, DiscardTakesItsTurn) {
  ExpectSound([] { return DiscardAgainstWriter(Toy(Break::kNothing), true); }, 3);
  ExpectSound([] { return DiscardAgainstWriter(Toy(Break::kNothing), false); }, 3);
  ExpectFound([] { return DiscardAgainstWriter(Toy(Break::kNoWait), true); }, 2);
}

// A write that fails while another one waits for its reservation.
Scenario DroppedReservation(Break broken) {
  auto bench = Toy(broken);
  auto failed = std::make_shared<bool>(false);
  return {{[=] {
             std::vector<std::byte> poison(100, kPoison);
             *failed = !Write(bench->layer(), 0, poison);
           },
           [=] { bench->Put({200, 100}, 2); }},
          [=]() -> std::string {
            if (!*failed) return "the poisoned write succeeded";
            if (bench->toy->used_clusters() != 1) return "space was lost";
            return First({bench->Expect({0, 200}, {0}), bench->Expect({200, 100}, {2}),
                          bench->Expect({300, 200}, {0})});
          }};
}

TEST(Contract, ADroppedReservationLeavesNoTrace) {
  ExpectSound([] { return DroppedReservation(Break::kNothing); }, 3);
  ExpectFound([] { return DroppedReservation(Break::kPublishEarly); }, 0);
}

// A copy holds several reservations at once; two of them and a wide writer must not wait in a ring.
Scenario CopiesAgainstAWriter() {
  auto bench = Toy(Break::kNothing);
  auto source = Toy(Break::kNothing);
  for (uint64_t i = 0; i < 6; i += 2) source->Put({i * kCluster, kCluster}, 7);
  auto copy = [=] {
    CopyOptions options;
    options.threads = 1;
    options.target_is_zero = true;
    CHECK(Copy(*source->toy, bench->layer(), {0, kSize}, options));
  };
  return {{copy, copy, [=] { bench->Put({0, 6 * kCluster}, 9); }}, [=] {
            return First({bench->Expect({0, kCluster}, {7, 9}),
                          bench->Expect({kCluster, kCluster}, {9}),
                          bench->Expect({4 * kCluster, kCluster}, {7, 9}),
                          bench->Expect({6 * kCluster, 2 * kCluster}, {0})});
          }};
}

TEST(Contract, SeveralReservationsOfACopyDoNotDeadlock) {
  Outcome all = ExploreAll(CopiesAgainstAWriter, 1, 20'000);
  EXPECT_EQ(all.failure, "");
  Outcome random = ExploreRandom(CopiesAgainstAWriter, 1, 1000);
  EXPECT_EQ(random.failure, "");
}

// Two threads that each write and flush: whatever a Flush acknowledged survives every power cut.
Scenario FlushAgainstPublish(Break broken) {
  struct Recorded {
    CrashRecorder recorder;
    std::optional<ToyBench> bench;
    uint64_t start = 0;
    std::array<uint64_t, 2> acknowledged{};
  };
  auto recorded = std::make_shared<Recorded>();
  recorded->bench.emplace(broken, recorded->recorder.NewStore());
  recorded->start = recorded->recorder.boundary();
  auto writer = [=](uint64_t number) {
    recorded->bench->Put({number * kCluster / 2, 50}, 1 + static_cast<int>(number));
    CHECK(recorded->bench->layer().Flush());
    recorded->acknowledged[number] = recorded->recorder.boundary();
  };
  return {{[=] { writer(0); }, [=] { writer(1); }}, [=]() -> std::string {
            for (uint64_t cut = recorded->start; cut <= recorded->recorder.boundary(); ++cut) {
              for (uint64_t seed = 0; seed < 5; ++seed) {
                auto image = recorded->recorder.Crash(cut, seed);
                auto layer = ToyLayer::Open(*image, recorded->bench->options);
                if (!layer) return layer.error().text();
                for (uint64_t i = 0; i < 2; ++i) {
                  std::vector<std::byte> bytes(50);
                  auto read = Read(**layer, i * kCluster / 2, Bytes(bytes));
                  if (!read) return fmt::format("cut {}: {}", cut, read.error().text());
                  int value = 1 + static_cast<int>(i);
                  bool durable = cut >= recorded->acknowledged[i];
                  auto wrong = Judge(bytes, 0, {value, durable ? value : 0});
                  if (!wrong.empty()) return fmt::format("cut {}, writer {}: {}", cut, i, wrong);
                }
              }
            }
            return "";
          }};
}

TEST(Contract, FlushCoversWhatWasPublished) {
  ExpectSound([] { return FlushAgainstPublish(Break::kNothing); }, 1);
  ExpectFound([] { return FlushAgainstPublish(Break::kNoBarrier); }, 0);
}

}  // namespace
}  // namespace platter::schedule
