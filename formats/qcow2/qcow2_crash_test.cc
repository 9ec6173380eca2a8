// Power cuts at every write boundary, and a failure of every call: an image is never corrupt, and
// what a Flush acknowledged is there.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "formats/qcow2/qcow2_subjects_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/fault_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/fault.h"
#include "tests/model/model.h"
#include "tests/model/power_cut.h"

namespace platter::qcow2 {
namespace {

using model::Actor;
using model::Errors;
using model::Random;

std::vector<Configuration> Cases() {
  std::vector<Configuration> all = Configurations();
  // Opening those costs a key derivation each time.
  std::erase_if(all, [](const Configuration& each) { return each.name.starts_with("LUKS"); });
  for (Configuration& each : SnapshotConfigurations()) all.push_back(std::move(each));
  return all;
}

// The disk at some moment, and how many events there had been on the stores.
struct Moment {
  uint64_t boundary;
  bool durable;  // a Flush has just succeeded
  std::vector<std::byte> bytes;
};

// What the recorded operations did, and what may be read after a power cut.
class History {
 public:
  void Add(uint64_t boundary, bool durable, const std::vector<std::byte>& bytes) {
    moments_.push_back({boundary, durable, bytes});
  }
  // Each byte is one that it had at the last Flush before the cut, or later, or that the operation
  // under way was about to give it.
  testing::AssertionResult Allows(uint64_t cut, const std::vector<std::byte>& got) const {
    size_t first = 0, last = 0;
    for (size_t i = 0; i < moments_.size(); ++i) {
      if (moments_[i].boundary <= cut && moments_[i].durable) first = i;
      last = i;
      if (moments_[i].boundary >= cut) break;
    }
    last = std::max(last, first);
    for (size_t at = 0; at < got.size(); ++at) {
      bool known = false;
      for (size_t i = first; i <= last && !known; ++i) known = moments_[i].bytes[at] == got[at];
      if (!known) {
        return testing::AssertionFailure()
               << "byte " << at << " is " << std::to_integer<int>(got[at]) << ", was "
               << std::to_integer<int>(moments_[first].bytes[at]) << " at the last flush";
      }
    }
    return testing::AssertionSuccess();
  }

 private:
  std::vector<Moment> moments_;
};

testing::AssertionResult ReadsAs(const Configuration& configuration, Store& disk, Store* data,
                                 uint64_t cut, const History& history) {
  auto sound = IsSound(disk);
  if (!sound) return testing::AssertionFailure() << "check: " << sound.error().text();
  if (!*sound) return testing::AssertionFailure() << "corrupt";
  auto layer = OpenImage(configuration, disk, data, false);
  if (!layer) return testing::AssertionFailure() << layer.error().text();
  std::vector<std::byte> got(configuration.size);
  auto read = Read(**layer, 0, Bytes(got));
  if (!read) return testing::AssertionFailure() << read.error().text();
  if (auto allowed = history.Allows(cut, got); !allowed) return allowed;
  if (configuration.snapshot.empty()) return testing::AssertionSuccess();
  auto snapshot = OpenImage(configuration, disk, data, false, "s");
  if (!snapshot) return testing::AssertionFailure() << snapshot.error().text();
  auto read_snapshot = Read(**snapshot, 0, Bytes(got));
  if (!read_snapshot) return testing::AssertionFailure() << read_snapshot.error().text();
  return got == configuration.snapshot ? testing::AssertionSuccess()
                                       : testing::AssertionFailure() << "the snapshot changed";
}

void CutPower(const Configuration& configuration, uint64_t seed, int operations) {
  MemoryStore image, guest_data;
  auto created =
      CreateImage(configuration, image, configuration.has_data_file() ? &guest_data : nullptr);
  ASSERT_TRUE(created) << created.error().text();
  CrashRecorder recorder;
  auto disk = recorder.NewStore(image), data = recorder.NewStore(guest_data);
  std::vector<std::byte> bytes = InitialBytes(SubjectOf(configuration));
  History history;
  history.Add(0, true, bytes);
  {
    auto layer = OpenImage(configuration, *disk, data.get());
    ASSERT_TRUE(layer) << layer.error().text();
    Actor actor(bytes, configuration.cluster, Random(seed), Errors::kAreFailures);
    for (int i = 0; i < operations; ++i) {
      auto done = actor.Step(**layer, {0, configuration.size});
      ASSERT_TRUE(done) << actor.last();
      history.Add(recorder.boundary(), actor.flushed(), bytes);
    }
  }
  history.Add(recorder.boundary(), true, bytes);
  for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
    for (uint64_t variant = 0; variant < 4; ++variant) {
      auto disk_after = recorder.Crash(cut, variant, 0),
           data_after = recorder.Crash(cut, variant, 1);
      ASSERT_TRUE(ReadsAs(configuration, *disk_after, data_after.get(), cut, history))
          << configuration.name << ", seed " << seed << ", power cut after event " << cut << " of "
          << recorder.boundary() << ", variant " << variant;
    }
  }
}

class Qcow2Crash : public testing::TestWithParam<Configuration> {};

TEST_P(Qcow2Crash, PowerCut) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    CutPower(GetParam(), seed, 30);
    if (HasFatalFailure()) return;
  }
}

// One call fails, once; everything goes on. Reads apart, which the driver itself does to see what a
// discard has left.
void FailCall(const Configuration& configuration, uint64_t k, bool& fired) {
  MemoryStore image, guest_data;
  auto created =
      CreateImage(configuration, image, configuration.has_data_file() ? &guest_data : nullptr);
  ASSERT_TRUE(created) << created.error().text();
  std::vector<std::byte> bytes = InitialBytes(SubjectOf(configuration));
  const Range all{0, configuration.size};
  FaultPlan plan(k, FaultPlan::kAny & ~FaultPlan::kRead);
  FaultStore disk(std::make_unique<WrapperStore>(image), plan);
  FaultStore data(std::make_unique<WrapperStore>(guest_data), plan);
  auto layer = OpenImage(configuration, disk, &data);
  fired = plan.fired();
  if (!layer) {
    ASSERT_TRUE(fired) << layer.error().text();
    return;
  }
  Actor actor(bytes, configuration.cluster, Random(k % 7 + 1), Errors::kMayHappen);
  for (int i = 0; i < 25; ++i) {
    auto done = actor.Step(**layer, all);
    ASSERT_TRUE(done) << configuration.name << ", call " << k << ": " << actor.last();
  }
  fired = plan.fired();
  plan.Disarm();
  ASSERT_TRUE(actor.Verify(**layer, all)) << configuration.name << ", call " << k;
  auto flushed = (*layer)->Flush();
  ASSERT_TRUE(flushed) << configuration.name << ", call " << k << ": " << flushed.error().text();
  layer->reset();
  auto sound = IsSound(image);
  ASSERT_TRUE(sound) << configuration.name << ", call " << k << ": " << sound.error().text();
  auto again = OpenImage(configuration, image, &guest_data, false);
  ASSERT_TRUE(again) << again.error().text();
  ASSERT_TRUE(actor.Verify(**again, all)) << configuration.name << ", reopened, call " << k;
}

TEST_P(Qcow2Crash, Fault) {
  // Half of a failed write may end inside a sector, which is garbage then once it is decrypted.
  if (GetParam().encrypted) return;
  bool fired = true;
  for (uint64_t k = 0; fired; ++k) {
    FailCall(GetParam(), k, fired);
    if (HasFatalFailure()) return;
  }
}

// A read fails, once: of a table, a refcount or of bytes to be copied up.
TEST_P(Qcow2Crash, ReadFault) {
  const Configuration& configuration = GetParam();
  bool fired = true;
  for (uint64_t k = 0; fired; ++k) {
    MemoryStore image, guest_data;
    auto created =
        CreateImage(configuration, image, configuration.has_data_file() ? &guest_data : nullptr);
    ASSERT_TRUE(created) << created.error().text();
    std::vector<std::byte> bytes = InitialBytes(SubjectOf(configuration));
    FaultPlan plan(k, FaultPlan::kRead);
    FaultStore disk(std::make_unique<WrapperStore>(image), plan);
    FaultStore data(std::make_unique<WrapperStore>(guest_data), plan);
    auto layer = OpenImage(configuration, disk, &data);
    Random random(k % 5 + 1);
    for (int i = 0; layer && i < 40; ++i) {
      uint64_t at = random.Below(configuration.size);
      uint64_t length = 1 + random.Below(std::min<uint64_t>(configuration.size - at, 9000));
      std::vector<std::byte> now(length, static_cast<std::byte>(random.Next()));
      auto written = Write(**layer, at, ConstBytes(now));
      if (written) {
        std::ranges::copy(now, bytes.begin() + static_cast<ptrdiff_t>(at));
      } else {
        ASSERT_TRUE(plan.fired()) << written.error().text();
        std::vector<std::byte> got(length);
        ASSERT_TRUE(Read(**layer, at, Bytes(got)));
        for (uint64_t j = 0; j < length; ++j) {
          ASSERT_TRUE(got[j] == now[j] || got[j] == bytes[at + j]);
          bytes[at + j] = got[j];
        }
      }
    }
    fired = plan.fired();
    plan.Disarm();
    if (!layer) continue;
    ASSERT_TRUE((*layer)->Flush());
    layer->reset();
    auto sound = IsSound(image);
    ASSERT_TRUE(sound) << configuration.name << ", read " << k << ": " << sound.error().text();
    auto again = OpenImage(configuration, image, &guest_data, false);
    ASSERT_TRUE(again) << again.error().text();
    std::vector<std::byte> got(configuration.size);
    ASSERT_TRUE(Read(**again, 0, Bytes(got)));
    ASSERT_TRUE(got == bytes) << configuration.name << ", read " << k;
  }
}

// Does something in the middle of a Flush, once the data file is synced.
class SyncHook final : public WrapperStore {
 public:
  using WrapperStore::WrapperStore;
  Result<> Sync() override {
    TRY(base_.Sync());
    if (auto hook = std::exchange(hook_, nullptr)) hook();
    return {};
  }
  std::function<void()> hook_;
};

// What is written after the data file's Sync is not durable: no table may name it before the next.
TEST(Qcow2Flush, NamesNothingThatCameAfterTheSync) {
  const Configuration configuration{
      "data file", 60 * 4096, 4096, {{"data_file", "data"}}, /*parent=*/true};
  MemoryStore image, guest_data;
  ASSERT_TRUE(CreateImage(configuration, image, &guest_data));
  SyncHook data(guest_data);
  auto layer = OpenImage(configuration, image, &data);
  ASSERT_TRUE(layer) << layer.error().text();
  const std::vector<std::byte> bytes(4096, std::byte{7});
  ASSERT_TRUE(Write(**layer, 0, ConstBytes(bytes)));
  bool late = false;
  data.hook_ = [&] { late = Write(**layer, 20 * 4096, ConstBytes(bytes)).has_value(); };
  ASSERT_TRUE((*layer)->Flush());
  ASSERT_TRUE(late);
  auto kind_of = [&](uint64_t at) {
    auto there = OpenImage(configuration, image, &guest_data, false);
    Extent extent;
    EXPECT_TRUE((*there)->Map({at, 4096}, std::span(&extent, 1)));
    return extent.kind;
  };
  EXPECT_EQ(kind_of(0), Kind::kData);
  EXPECT_EQ(kind_of(20 * 4096), Kind::kParent);
  ASSERT_TRUE((*layer)->Flush());
  EXPECT_EQ(kind_of(20 * 4096), Kind::kData);
}

// The common drivers, which also go on writing after the power cut. They know one store.
TEST_P(Qcow2Crash, CommonDrivers) {
  if (GetParam().has_data_file()) return;
  model::Subject subject = SubjectOf(GetParam());
  ASSERT_TRUE(RunPowerCuts(subject, model::Plan{.seed = 11, .operations = 20}));
  if (GetParam().encrypted) return;
  ASSERT_TRUE(RunFaults(subject, model::Plan{.seed = 12, .operations = 20}));
}

INSTANTIATE_TEST_SUITE_P(Configurations, Qcow2Crash, testing::ValuesIn(Cases()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           for (char& c : name)
                             c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace platter::qcow2
