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
struct Bench {
  explicit Bench(Break broken) : Bench(broken, std::make_unique<MemoryStore>()) {}
  Bench(Break broken, std::unique_ptr<Store> base) : memory(std::move(base)), store(*memory) {
    options.size = kSize;
    options.cluster = kCluster;
    options.broken = broken;
    CHECK(ToyLayer::Create(store, options));
    toy = std::move(*ToyLayer::Open(store, options));
    layer.emplace(*toy);
  }
  void Put(Range range, int value) {
    std::vector<std::byte> bytes(range.length, static_cast<std::byte>(value));
    CHECK(Write(*layer, range.offset, bytes));
  }
  std::vector<std::byte> Get(Range range) {
    std::vector<std::byte> bytes(range.length);
    CHECK(Read(*layer, range.offset, Bytes(bytes)));
    return bytes;
  }
  // What is wrong if the range does not hold one of these values throughout.
  std::string Expect(Range range, std::initializer_list<int> values) {
    std::vector<std::byte> bytes(range.length);
    auto read = Read(*layer, range.offset, Bytes(bytes));
    return read ? Judge(bytes, range.offset, values) : read.error().text();
  }
  static std::string Judge(ConstBytes bytes, uint64_t offset, std::initializer_list<int> values) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      int is = static_cast<int>(bytes[i]);
      if (std::ranges::find(values, is) == values.end()) {
        return fmt::format("byte {} is {:#x}", offset + i, is);
      }
    }
    return "";
  }

  ToyLayer::Options options;
  std::unique_ptr<Store> memory;
  PoisonedStore store;
  std::unique_ptr<ToyLayer> toy;
  std::optional<YieldLayer> layer;
};

using BenchPtr = std::shared_ptr<Bench>;

std::string First(std::initializer_list<std::string> verdicts) {
  for (const std::string& verdict : verdicts) {
    if (!verdict.empty()) return verdict;
  }
  return "";
}

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

// Two writers into one fresh cluster, each different bytes: both are there afterwards.
Scenario TwoWriters(Break broken) {
  auto bench = std::make_shared<Bench>(broken);
  return {{[=] { bench->Put({0, 100}, 1); }, [=] { bench->Put({200, 100}, 2); }}, [=] {
            return First({bench->Expect({0, 100}, {1}), bench->Expect({200, 100}, {2}),
                          bench->Expect({100, 100}, {0}), bench->Expect({300, 200}, {0})});
          }};
}

TEST(Contract, TwoWritersInAFreshClusterLoseNothing) {
  ExpectSound([] { return TwoWriters(Break::kNothing); }, 3);
  ExpectFound([] { return TwoWriters(Break::kNoWait); }, 2);
}

// A reader of a cluster that is dropped meanwhile, and whose space another cluster gets.
Scenario ReaderAgainstReuse(Break broken) {
  auto bench = std::make_shared<Bench>(broken);
  bench->Put({0, kCluster}, 0xa);
  CHECK(bench->toy->Flush());
  auto seen = std::make_shared<std::vector<std::byte>>();
  return {{[=] { *seen = bench->Get({0, kCluster}); },
           [=] {
             CHECK(Discard(*bench->layer, {0, kCluster}));
             CHECK(bench->layer->Flush());
             bench->Put({kCluster, kCluster}, 0xb);
           }},
          [=] {
            return First({Bench::Judge(*seen, 0, {0xa, 0}), bench->Expect({0, kCluster}, {0}),
                          bench->Expect({kCluster, kCluster}, {0xb})});
          }};
}

TEST(Contract, AReaderNeverSeesAnotherClustersBytes) {
  ExpectSound([] { return ReaderAgainstReuse(Break::kNothing); }, 3);
  ExpectFound([] { return ReaderAgainstReuse(Break::kNoQuarantine); }, 2);
}

// The same for a writer in place: its late bytes must not land in another cluster.
Scenario WriterAgainstReuse(Break broken) {
  auto bench = std::make_shared<Bench>(broken);
  bench->Put({0, kCluster}, 0xa);
  CHECK(bench->toy->Flush());
  return {{[=] { bench->Put({10, 20}, 0xc); },
           [=] {
             CHECK(Discard(*bench->layer, {0, kCluster}));
             CHECK(bench->layer->Flush());
             bench->Put({kCluster, kCluster}, 0xb);
           }},
          [=] {
            return First({bench->Expect({kCluster, kCluster}, {0xb}),
                          bench->Expect({10, 20}, {0, 0xc}), bench->Expect({30, 400}, {0})});
          }};
}

TEST(Contract, AWriterInPlaceNeverHitsAnotherCluster) {
  ExpectSound([] { return WriterAgainstReuse(Break::kNothing); }, 3);
  ExpectFound([] { return WriterAgainstReuse(Break::kNoQuarantine); }, 2);
}

// A fresh cluster on space that held something: no reader sees that.
Scenario ReaderAgainstFreshCluster(Break broken) {
  auto bench = std::make_shared<Bench>(broken);
  bench->Put({0, kCluster}, 0x5);
  CHECK(Discard(*bench->toy, {0, kCluster}));
  CHECK(bench->toy->Flush());
  auto seen = std::make_shared<std::vector<std::byte>>();
  return {
      {[=] { bench->Put({kCluster, 100}, 1); }, [=] { *seen = bench->Get({kCluster, kCluster}); }},
      [=] {
        return First({Bench::Judge(std::span(*seen).first(100), 0, {0, 1}),
                      Bench::Judge(std::span(*seen).subspan(100), 100, {0})});
      }};
}

TEST(Contract, NothingIsSeenBeforeItIsWhole) {
  ExpectSound([] { return ReaderAgainstFreshCluster(Break::kNothing); }, 3);
  ExpectFound([] { return ReaderAgainstFreshCluster(Break::kPublishEarly); }, 1);
}

// A write that fails while another one waits for its reservation.
Scenario DroppedReservation(Break broken) {
  auto bench = std::make_shared<Bench>(broken);
  auto failed = std::make_shared<bool>(false);
  return {{[=] {
             std::vector<std::byte> poison(100, kPoison);
             *failed = !Write(*bench->layer, 0, poison);
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

// Three writers whose ranges overlap in fresh clusters.
Scenario OverlappingWriters() {
  auto bench = std::make_shared<Bench>(Break::kNothing);
  return {{[=] { bench->Put({100, 2 * kCluster}, 1); },
           [=] { bench->Put({kCluster + 50, 2 * kCluster}, 2); },
           [=] { bench->Put({0, 3 * kCluster}, 3); }},
          [=] {
            return First({bench->Expect({0, 100}, {3}), bench->Expect({100, kCluster - 50}, {1, 3}),
                          bench->Expect({2 * kCluster + 100, kCluster - 100}, {2, 3}),
                          bench->Expect({3 * kCluster, 50}, {2}),
                          bench->Expect({3 * kCluster + 50, 400}, {0})});
          }};
}

TEST(Contract, OverlappingReservationsWaitAndEnd) { ExpectSound(OverlappingWriters, 1); }

// A copy holds several reservations at once; two of them and a wide writer must not wait in a ring.
Scenario CopiesAgainstAWriter() {
  auto bench = std::make_shared<Bench>(Break::kNothing);
  auto source = std::make_shared<Bench>(Break::kNothing);
  for (uint64_t i = 0; i < 6; i += 2) source->Put({i * kCluster, kCluster}, 7);
  auto copy = [=] {
    CopyOptions options;
    options.threads = 1;
    options.target_is_zero = true;
    CHECK(Copy(*source->toy, *bench->layer, {0, kSize}, options));
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

// Discard, and an acknowledged write after it, against a writer in the same cluster.
Scenario DiscardAgainstWriter(Break broken, bool fresh) {
  auto bench = std::make_shared<Bench>(broken);
  if (!fresh) bench->Put({0, kCluster}, 0xa);
  return {{[=] { bench->Put({10, 20}, 1); },
           [=] {
             CHECK(Discard(*bench->layer, {0, kCluster}));
             bench->Put({200, 20}, 2);
           }},
          [=] {
            return First({bench->Expect({10, 20}, {0, 1}), bench->Expect({200, 20}, {2}),
                          bench->Expect({0, 10}, {0}), bench->Expect({30, 170}, {0})});
          }};
}

TEST(Contract, DiscardTakesItsTurn) {
  ExpectSound([] { return DiscardAgainstWriter(Break::kNothing, true); }, 3);
  ExpectSound([] { return DiscardAgainstWriter(Break::kNothing, false); }, 3);
  ExpectFound([] { return DiscardAgainstWriter(Break::kNoWait, true); }, 2);
}

// Two threads that each write and flush: whatever a Flush acknowledged survives every power cut.
Scenario FlushAgainstPublish(Break broken) {
  struct Recorded {
    CrashRecorder recorder;
    std::optional<Bench> bench;
    uint64_t start = 0;
    std::array<uint64_t, 2> acknowledged{};
  };
  auto recorded = std::make_shared<Recorded>();
  recorded->bench.emplace(broken, recorded->recorder.NewStore());
  recorded->start = recorded->recorder.boundary();
  auto writer = [=](uint64_t number) {
    recorded->bench->Put({number * kCluster / 2, 50}, 1 + static_cast<int>(number));
    CHECK(recorded->bench->layer->Flush());
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
                  auto wrong = Bench::Judge(bytes, 0, {value, durable ? value : 0});
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
