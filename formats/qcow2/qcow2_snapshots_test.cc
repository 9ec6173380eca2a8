// Internal snapshots: against QEMU both ways, at random against a model, and over power cuts.
#include "formats/qcow2/qcow2_snapshots.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_subjects_testing.h"
#include "formats/qcow2/qcow2_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/fault_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/random.h"

namespace platter::qcow2 {
namespace {

using testing::HasSubstr;
using Contents = std::vector<std::byte>;

// A disk and its snapshots as they should be.
struct Model {
  Contents disk;
  std::map<std::string, Contents> snapshots;
};

Result<> WriteRandom(Layer& layer, Contents& disk, model::Random& random) {
  uint64_t at = random.Below(disk.size());
  uint64_t length = 1 + random.Below(std::min<uint64_t>(disk.size() - at, 200 * kKiB));
  if (random.OneIn(5)) {
    TRY(Zero(layer, {at, length}, random.OneIn(2)));
    std::ranges::fill(std::span(disk).subspan(at, length), std::byte{0});
    return {};
  }
  Contents bytes(length);
  random.Fill(bytes);
  TRY(Write(layer, at, ConstBytes(bytes)));
  std::ranges::copy(bytes, disk.begin() + static_cast<ptrdiff_t>(at));
  return {};
}

Result<Contents> ReadAll(Layer& layer) {
  Contents bytes(layer.info().size);
  TRY(Read(layer, 0, Bytes(bytes)));
  return bytes;
}

Result<std::unique_ptr<Layer>> Open(Store& store, bool writable, const std::string& snapshot = "") {
  OpenOptions options;
  options.writable = writable;
  options.snapshot = snapshot;
  return OpenQcow2(std::make_unique<WrapperStore>(store), options);
}

testing::AssertionResult Holds(Store& store, const Model& model) {
  auto disk = Open(store, false);
  if (!disk) return testing::AssertionFailure() << disk.error().text();
  if ((*disk)->info().snapshots.size() != model.snapshots.size()) {
    return testing::AssertionFailure() << (*disk)->info().snapshots.size() << " snapshots";
  }
  auto bytes = ReadAll(**disk);
  if (!bytes) return testing::AssertionFailure() << bytes.error().text();
  if (*bytes != model.disk) return testing::AssertionFailure() << "the disk differs";
  for (const auto& [name, content] : model.snapshots) {
    auto snapshot = Open(store, false, name);
    if (!snapshot) return testing::AssertionFailure() << snapshot.error().text();
    auto read = ReadAll(**snapshot);
    if (!read) return testing::AssertionFailure() << read.error().text();
    if (*read != content) return testing::AssertionFailure() << "snapshot " << name << " differs";
  }
  return testing::AssertionSuccess();
}

class Qcow2SnapshotTest : public QemuTest {
 protected:
  std::unique_ptr<Layer> OpenToWrite(const std::string& name) {
    auto layer = OpenQcow2(OpenFile(name), OpenOptions{.writable = true});
    EXPECT_TRUE(layer) << layer.error().text();
    return layer ? std::move(*layer) : nullptr;
  }
  void Qemu(const std::string& command) {
    Outcome outcome = Shell("cd " + Path("") + " && " + command);
    ASSERT_EQ(outcome.exit_code, 0) << command << "\n" << outcome.output;
  }
  testing::AssertionResult FileHolds(const std::string& name, const Model& model) {
    auto file = OpenFile(name);
    return Holds(*file, model);
  }
};

const char* const kOptionSets[] = {
    "",
    "compat=v2",
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=4",
    "refcount_bits=64,lazy_refcounts=on",
    "extended_l2=on,cluster_size=16k",
    "preallocation=metadata,cluster_size=16k",
};

TEST_F(Qcow2SnapshotTest, OursAreQemus) {
  for (const char* options : kOptionSets) {
    SCOPED_TRACE(options);
    Create("a", 3 * kMiB + 512, OptionsOf(options));
    Model model{.disk = Contents(3 * kMiB + 512), .snapshots = {}};
    model::Random random(1);
    {
      auto layer = OpenToWrite("a");
      ASSERT_NE(layer->snapshotter(), nullptr);
      for (const char* name : {"first", "second", "third"}) {
        for (int i = 0; i < 10; ++i) ASSERT_TRUE(WriteRandom(*layer, model.disk, random));
        auto created = layer->snapshotter()->CreateSnapshot(name);
        ASSERT_TRUE(created) << created.error().text();
        model.snapshots[name] = model.disk;
      }
      for (int i = 0; i < 10; ++i) ASSERT_TRUE(WriteRandom(*layer, model.disk, random));
    }
    ExpectClean("a", options);
    EXPECT_TRUE(FileHolds("a", model));
    EXPECT_THAT(Shell("qemu-img snapshot -l " + Path("a")).output, HasSubstr("second"));
    // QEMU takes over: the same disk after its own apply and delete.
    Qemu("qemu-img snapshot -a first a && qemu-img snapshot -d second a");
    model.disk = model.snapshots["first"];
    model.snapshots.erase("second");
    ExpectClean("a", options);
    EXPECT_TRUE(FileHolds("a", model));
  }
}

TEST_F(Qcow2SnapshotTest, QemusAreOurs) {
  Qemu(
      "qemu-img create -q -f qcow2 a 4M && qemu-io -c 'write -P 1 0 2M' a && "
      "qemu-img snapshot -c one a && qemu-io -c 'write -P 2 1M 2M' a && "
      "qemu-img snapshot -c two a && qemu-io -c 'write -P 3 0 64k' a");
  {
    auto layer = OpenToWrite("a");
    auto applied = layer->snapshotter()->ApplySnapshot("one");
    ASSERT_TRUE(applied) << applied.error().text();
    auto dropped = layer->snapshotter()->DeleteSnapshot("2");
    ASSERT_TRUE(dropped) << dropped.error().text();
    EXPECT_EQ(layer->info().snapshots.size(), 1u);
    auto created = layer->snapshotter()->CreateSnapshot("three");
    ASSERT_TRUE(created) << created.error().text();
    EXPECT_EQ(layer->info().snapshots[1].id, "2") << "one more than the largest there is";
  }
  ExpectClean("a", "after ours");
  Qemu("qemu-io -c 'read -P 1 0 2M' -c 'read -P 0 2M 2M' a | grep -vq 'verification failed'");
  Qemu("qemu-img snapshot -d one a && qemu-img snapshot -d three a");
  ExpectClean("a", "after QEMU's");
}

// The name of one is the id of another: who goes by QEMU's habits deletes no other than QEMU would.
TEST_F(Qcow2SnapshotTest, NamesThatLookLikeIds) {
  Create("a", kMiB, {});
  {
    auto layer = OpenToWrite("a");
    for (const char* name : {"2", "1", "x"}) {
      ASSERT_TRUE(layer->snapshotter()->CreateSnapshot(name));
    }
  }
  Qemu("cp a b && qemu-img snapshot -d 1 b");
  auto names = [](const Layer& layer) {
    std::vector<std::string> all;
    for (const SnapshotInfo& snapshot : layer.info().snapshots) all.push_back(snapshot.name);
    return all;
  };
  auto ours = OpenToWrite("a"), theirs = OpenToWrite("b");
  ASSERT_TRUE(ours->snapshotter()->DeleteSnapshot("1"));
  EXPECT_EQ(names(*ours), names(*theirs));
  ASSERT_TRUE(ours->snapshotter()->DeleteSnapshot("3"));
  EXPECT_EQ(names(*ours), std::vector<std::string>{"2"});
}

TEST_F(Qcow2SnapshotTest, RefusesWhatItCannotDo) {
  Create("a", kMiB, {{"refcount_bits", "1"}});
  auto narrow = OpenToWrite("a")->snapshotter()->CreateSnapshot("s");
  ASSERT_FALSE(narrow);
  EXPECT_THAT(narrow.error().text(), HasSubstr("1 bit"));

  Create("b", kMiB, {});
  auto layer = OpenToWrite("b");
  ASSERT_TRUE(layer->snapshotter()->CreateSnapshot("s"));
  EXPECT_EQ(layer->snapshotter()->CreateSnapshot("s").error().code(), Code::kRefused);
  EXPECT_EQ(layer->snapshotter()->CreateSnapshot("").error().code(), Code::kOutOfRange);
  EXPECT_EQ(layer->snapshotter()->ApplySnapshot("t").error().code(), Code::kOutOfRange);
  EXPECT_EQ(layer->snapshotter()->DeleteSnapshot("t").error().code(), Code::kOutOfRange);
  layer.reset();
  auto reader = OpenQcow2(OpenFile("b"), OpenOptions{});
  ASSERT_TRUE(reader);
  EXPECT_EQ((*reader)->snapshotter(), nullptr);
}

// One step of a random history.
Result<std::string> Step(Layer& layer, Model& model, model::Random& random) {
  Snapshotter& snapshots = *layer.snapshotter();
  auto any = [&] {
    auto it = model.snapshots.begin();
    std::advance(it, random.Below(model.snapshots.size()));
    return it;
  };
  uint64_t dice = random.Below(20);
  if (dice < 2 && model.snapshots.size() < 6) {
    std::string name = fmt::format("s{}", random.Next());
    TRY(snapshots.CreateSnapshot(name));
    model.snapshots[name] = model.disk;
    return "create " + name;
  }
  if (dice == 2 && !model.snapshots.empty()) {
    auto it = any();
    TRY(snapshots.ApplySnapshot(it->first));
    model.disk = it->second;
    return "apply " + it->first;
  }
  if (dice == 3 && !model.snapshots.empty()) {
    auto it = any();
    std::string name = it->first;
    TRY(snapshots.DeleteSnapshot(name));
    model.snapshots.erase(it);
    return "delete " + name;
  }
  TRY(WriteRandom(layer, model.disk, random));
  return "write";
}

TEST_F(Qcow2SnapshotTest, RandomHistories) {
  uint64_t seed = 7;
  for (const char* options : kOptionSets) {
    SCOPED_TRACE(fmt::format("{} seed {}", options, ++seed));
    Create("a", 2 * kMiB, OptionsOf(options));
    Model model{.disk = Contents(2 * kMiB), .snapshots = {}};
    model::Random random(seed);
    for (int opened = 0; opened < 3; ++opened) {
      auto layer = OpenToWrite("a");
      for (int i = 0; i < 40; ++i) {
        auto step = Step(*layer, model, random);
        ASSERT_TRUE(step) << step.error().text();
      }
      ASSERT_TRUE(layer->Flush());
      layer.reset();
      ExpectClean("a", options);
      ASSERT_TRUE(FileHolds("a", model));
    }
  }
}

// What an operation does to a model.
struct Operation {
  const char* name;
  Result<> (*apply)(Snapshotter&);
  void (*expect)(Model&);
};
const Operation kOperations[] = {
    {"create", [](Snapshotter& s) { return s.CreateSnapshot("new"); },
     [](Model& m) { m.snapshots["new"] = m.disk; }},
    {"apply", [](Snapshotter& s) { return s.ApplySnapshot("old"); },
     [](Model& m) { m.disk = m.snapshots["old"]; }},
    {"delete", [](Snapshotter& s) { return s.DeleteSnapshot("old"); },
     [](Model& m) { m.snapshots.erase("old"); }},
};

// An image with a snapshot "old", and more written since.
std::unique_ptr<MemoryStore> Prepared(const char* options, Model& model) {
  auto store = std::make_unique<MemoryStore>();
  CreateOptions create;
  create.size = 640 * kKiB;
  create.options = OptionsOf(options);
  EXPECT_TRUE(CreateQcow2(*store, create));
  model = {.disk = Contents(create.size), .snapshots = {}};
  model::Random random(3);
  auto layer = Open(*store, true);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(WriteRandom(**layer, model.disk, random));
  EXPECT_TRUE((*layer)->snapshotter()->CreateSnapshot("old"));
  model.snapshots["old"] = model.disk;
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(WriteRandom(**layer, model.disk, random));
  return store;
}

const char* const kCrashSets[] = {"cluster_size=16k", "cluster_size=16k,compat=v2",
                                  "cluster_size=16k,extended_l2=on"};

TEST(Qcow2SnapshotCrash, BeforeOrAfterAtEveryPowerCut) {
  for (const char* options : kCrashSets) {
    for (const Operation& operation : kOperations) {
      Model before;
      auto image = Prepared(options, before);
      Model after = before;
      operation.expect(after);
      CrashRecorder recorder;
      {
        auto layer = OpenQcow2(recorder.NewStore(*image), OpenOptions{.writable = true});
        ASSERT_TRUE(layer);
        auto done = operation.apply(*(*layer)->snapshotter());
        ASSERT_TRUE(done) << done.error().text();
      }
      for (uint64_t boundary = 0; boundary <= recorder.boundary(); ++boundary) {
        for (uint64_t seed = 0; seed < 4; ++seed) {
          SCOPED_TRACE(fmt::format("{} {} at {} seed {}", options, operation.name, boundary, seed));
          auto disk = recorder.Crash(boundary, seed);
          ASSERT_TRUE(Holds(*disk, before) || Holds(*disk, after))
              << Holds(*disk, before).message();
          // The next writer finds nothing wrong, and what it writes is in no snapshot.
          auto layer = Open(*disk, true);
          ASSERT_TRUE(layer) << layer.error().text();
          Model model = Holds(*disk, before) ? before : after;
          model::Random random(seed);
          for (int i = 0; i < 2; ++i) ASSERT_TRUE(WriteRandom(**layer, model.disk, random));
          ASSERT_TRUE((*layer)->Flush());
          layer->reset();
          ASSERT_TRUE(Holds(*disk, model));
        }
      }
      auto whole = recorder.Crash(recorder.boundary(), 1);
      ASSERT_TRUE(Holds(*whole, after)) << options << operation.name;
    }
  }
}

TEST(Qcow2SnapshotFault, EveryFailedCallLeavesOneOfTheTwo) {
  for (const Operation& operation : kOperations) {
    Model before;
    auto image = Prepared("cluster_size=16k", before);
    Model after = before;
    operation.expect(after);
    for (uint64_t k = 0;; ++k) {
      SCOPED_TRACE(fmt::format("{} call {}", operation.name, k));
      auto copy = image->Clone();
      MemoryStore& disk = *copy;
      FaultPlan plan(k, FaultPlan::kAny, EIO, /*for_ever=*/true);
      bool succeeded = false;
      {
        auto layer =
            OpenQcow2(std::make_unique<FaultStore>(std::make_unique<WrapperStore>(disk), plan),
                      OpenOptions{.writable = true});
        succeeded = layer && operation.apply(*(*layer)->snapshotter()).has_value();
      }
      if (succeeded) {
        ASSERT_TRUE(Holds(disk, after));
      } else {
        ASSERT_TRUE(Holds(disk, before) || Holds(disk, after));
      }
      auto again = Open(disk, true);
      ASSERT_TRUE(again) << again.error().text();
      again->reset();
      if (!plan.fired()) break;
    }
  }
}

}  // namespace
}  // namespace platter::qcow2
