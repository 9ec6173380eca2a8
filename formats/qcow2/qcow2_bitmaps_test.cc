// Bitmaps that are added, removed, cleared, enabled and merged: as QEMU has them, both ways, over
// power cuts and failures.
#include "formats/qcow2/qcow2_bitmaps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/qcow2/qcow2_bitmaps_testing.h"
#include "formats/qcow2/qcow2_subjects_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/fault_store.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/random.h"

namespace platter::qcow2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class BitmapsTest : public BitmapTest {};

const char* const kOptionSets[] = {"cluster_size=512", "cluster_size=4k", "", "extended_l2=on"};

// The same by us and by QEMU, step by step.
TEST_F(BitmapsTest, OperationsAreQemus) {
  for (const char* options : kOptionSets) {
    SCOPED_TRACE(options);
    Run("rm -f ours theirs");
    const std::string o = *options ? std::string("-o ") + options : "";
    Run("qemu-img create -q -f qcow2 " + o + " theirs 5000192 && cp theirs ours");
    auto both = [&](const std::string& qemu, auto change) {
      SCOPED_TRACE(qemu);
      Run("qemu-img bitmap " + qemu);
      auto layer = OpenLayer("ours", true);
      Result<> done = change(*layer->bitmapper());
      ASSERT_TRUE(done) << done.error().text();
      EXPECT_EQ(Look("ours"), Look("theirs")) << "before the image is closed";
      layer.reset();
      EXPECT_EQ(Look("ours"), Look("theirs"));
      ExpectClean("ours", qemu);
    };
    both("--add theirs a", [](Bitmapper& b) { return b.AddBitmap({.name = "a"}); });
    both("--add -g 512 theirs fine",
         [](Bitmapper& b) { return b.AddBitmap({.name = "fine", .granularity = 512}); });
    both("--add -g 1M --disable theirs coarse", [](Bitmapper& b) -> Result<> {
      return b.AddBitmap({.name = "coarse", .granularity = kMiB, .enabled = false});
    });
    for (const char* image : {"ours", "theirs"}) {
      Run(std::string("qemu-io -c 'write 0 70k' -c 'write 3M 5k' -c 'write 4999168 1k' ") + image);
    }
    both("--merge fine theirs coarse", [](Bitmapper& b) { return b.MergeBitmap("coarse", b, "fine"); });
    both("--disable theirs fine", [](Bitmapper& b) { return b.EnableBitmap("fine", false); });
    both("--clear theirs a", [](Bitmapper& b) { return b.ClearBitmap("a"); });
    both("--merge coarse theirs a", [](Bitmapper& b) { return b.MergeBitmap("a", b, "coarse"); });
    both("--enable theirs coarse", [](Bitmapper& b) { return b.EnableBitmap("coarse", true); });
    both("--remove theirs fine", [](Bitmapper& b) { return b.RemoveBitmap("fine"); });
    both("--remove theirs a", [](Bitmapper& b) { return b.RemoveBitmap("a"); });
    both("--remove theirs coarse", [](Bitmapper& b) { return b.RemoveBitmap("coarse"); });
  }
}

// With a backing file whose name reaches past the header's first sector.
TEST_F(BitmapsTest, TheParentsNameStays) {
  const std::string name = std::string(200, 'p') + "/" + std::string(200, 'q');
  Run("qemu-img create -q -f qcow2 -u -b " + name + " -F raw a 5M && qemu-img bitmap --add a one");
  {
    auto layer = OpenLayer("a", true);
    ASSERT_TRUE(layer->bitmapper()->AddBitmap({.name = "two"}));
    ASSERT_TRUE(layer->bitmapper()->RemoveBitmap("one"));
  }
  auto layer = OpenLayer("a", false);
  ASSERT_EQ(layer->info().references.size(), 1u);
  EXPECT_EQ(layer->info().references[0].name, name);
  EXPECT_EQ(layer->info().references[0].format, "raw");
  EXPECT_EQ(layer->info().bitmaps.size(), 1u);
  EXPECT_THAT(Shell("qemu-img info " + Path("a")).output, HasSubstr(name));
}

TEST_F(BitmapsTest, DirtyRangesOfQemus) {
  Run("qemu-img create -q -f qcow2 a 5000192 && qemu-img bitmap --add -g 4k a b && "
      "qemu-io -c 'write 0 1' -c 'write 8191 2' -c 'write 4999168 1k' a");
  auto layer = OpenLayer("a", false);
  auto dirty = DirtyOf(*layer, "b");
  ASSERT_TRUE(dirty) << dirty.error().text();
  EXPECT_THAT(*dirty, ElementsAre(Range{0, 12288}, Range{4997120, 3072}));
  std::vector<Range> part;
  ASSERT_TRUE(layer->bitmapper()->VisitDirty("b", {100, 4'999'000}, [&](Range range) {
    part.push_back(range);
    return true;
  }));
  EXPECT_THAT(part, ElementsAre(Range{100, 12188}, Range{4997120, 1980}));
}

TEST_F(BitmapsTest, RefusesWhatItCannotDo) {
  Create("old", kMiB, {{"compat", "0.10"}});
  auto text = [](Result<> result) { return result ? "done" : result.error().text(); };
  auto old = OpenLayer("old", true);
  EXPECT_THAT(text(old->bitmapper()->AddBitmap({.name = "b"})), HasSubstr("compat=0.10"));
  Create("a", kMiB, {});
  {
    auto layer = OpenLayer("a", true);
    Bitmapper& b = *layer->bitmapper();
    ASSERT_TRUE(b.AddBitmap({.name = "b"}));
    EXPECT_EQ(b.AddBitmap({.name = "b"}).error().code(), Code::kRefused);
    EXPECT_EQ(b.AddBitmap({.name = ""}).error().code(), Code::kOutOfRange);
    EXPECT_EQ(b.AddBitmap({.name = std::string(1024, 'x')}).error().code(), Code::kOutOfRange);
    EXPECT_EQ(b.AddBitmap({.name = "c", .granularity = 1000}).error().code(), Code::kOutOfRange);
    EXPECT_EQ(b.AddBitmap({.name = "c", .granularity = 256}).error().code(), Code::kOutOfRange);
    EXPECT_EQ(b.RemoveBitmap("c").error().code(), Code::kOutOfRange);
    EXPECT_EQ(b.MergeBitmap("b", b, "c").error().code(), Code::kOutOfRange);
  }
  {
    auto reader = OpenLayer("a", false);
    EXPECT_EQ(reader->bitmapper()->AddBitmap({.name = "c"}).error().code(), Code::kReadOnly);
    EXPECT_TRUE(DirtyOf(*reader, "b"));
  }
  ExpectClean("a", "after refusals");
}

// A program was killed while it had the image open: the bitmap can be removed, and nothing else.
TEST_F(BitmapsTest, OneInUseCanOnlyBeRemoved) {
  Run("qemu-img create -q -f qcow2 a 4M && qemu-img bitmap --add a b && qemu-img bitmap --add a c");
  Shell("cd " + Path("") + " && qemu-io -c 'write 0 64k' -c 'flush' -c 'sigraise 9' a");
  ASSERT_TRUE(Look("a")["b"].in_use);
  {
    auto layer = OpenLayer("a", true);
    Bitmapper& b = *layer->bitmapper();
    EXPECT_EQ(b.ClearBitmap("b").error().code(), Code::kRefused);
    EXPECT_EQ(b.EnableBitmap("b", false).error().code(), Code::kRefused);
    EXPECT_EQ(b.MergeBitmap("b", b, "c").error().code(), Code::kRefused);
    EXPECT_THAT(DirtyOf(*layer, "b").error().text(), HasSubstr("removed"));
    ASSERT_TRUE(Write(*layer, 5, std::vector<std::byte>(3)));
    ASSERT_TRUE(b.RemoveBitmap("b"));
    ASSERT_TRUE(b.AddBitmap({.name = "b"}));
  }
  EXPECT_TRUE(Look("a")["c"].in_use);
  EXPECT_FALSE(Look("a")["b"].in_use);
  ExpectClean("a", "removed");
}

// Two entries that name one cluster: neither is written or freed.
TEST_F(BitmapsTest, ADamagedTableIsLeftAlone) {
  Run("qemu-img create -q -f qcow2 -o cluster_size=512 a 8M && qemu-img bitmap --add -g 512 a b && "
      "qemu-io -c 'write 0 8M' a");
  {
    auto file = OpenFile("a");
    std::vector<std::byte> head(512);
    ASSERT_TRUE(file->Store::Read(0, Bytes(head)));
    Header header = ParseHeader(head).value();
    std::vector<std::byte> directory(header.bitmaps->directory_size);
    ASSERT_TRUE(file->Store::Read(header.bitmaps->directory_offset, Bytes(directory)));
    const uint64_t table = ParseBitmaps(header, directory).value()[0].table_offset;
    std::vector<std::byte> entry(8);
    ASSERT_TRUE(file->Store::Read(table, Bytes(entry)));
    ASSERT_TRUE(file->Store::Write(table + 8, ConstBytes(entry)));
  }
  auto layer = OpenLayer("a", true);
  EXPECT_EQ(layer->bitmapper()->ClearBitmap("b").error().code(), Code::kCorrupt);
  ASSERT_TRUE(Write(*layer, 5, std::vector<std::byte>(3)));
  EXPECT_TRUE(Look("a")["b"].in_use) << "it lacks the write";
  EXPECT_EQ(DirtyOf(*layer, "b").error().code(), Code::kRefused);
  EXPECT_TRUE(layer->bitmapper()->RemoveBitmap("b"));
}

struct Operation {
  const char* name;
  Result<> (*apply)(Bitmapper&);
};
const Operation kOperations[] = {
    {"add", [](Bitmapper& b) { return b.AddBitmap({.name = "new", .granularity = 512}); }},
    {"remove", [](Bitmapper& b) { return b.RemoveBitmap("on"); }},
    {"clear", [](Bitmapper& b) { return b.ClearBitmap("on"); }},
    {"disable", [](Bitmapper& b) { return b.EnableBitmap("on", false); }},
    {"merge", [](Bitmapper& b) { return b.MergeBitmap("off", b, "on"); }},
};

class BitmapCrash : public BitmapTest {
 protected:
  // With bitmaps "on" and "off", and a parent whose name needs more than a sector.
  std::unique_ptr<MemoryStore> Prepared(const char* options) {
    const std::string parent = std::string(100, 'p') + "/" + std::string(100, 'q');
    Run(fmt::format("rm -f a && qemu-img create -q -f qcow2 -o {} -u -b {} -F raw a 1500160 && "
                    "qemu-img bitmap --add -g 512 a on && qemu-img bitmap --add -g 4k a off && "
                    "qemu-io -c 'write 0 70k' -c 'write 1M 9k' a && "
                    "qemu-img bitmap --disable a off && qemu-io -c 'write 90k 200k' a",
                    options, parent));
    return Load("a");
  }
};

TEST_F(BitmapCrash, BeforeOrAfterAtEveryPowerCut) {
  for (const char* options : {"cluster_size=512", "cluster_size=4k"}) {
    auto image = Prepared(options);
    const auto before = LookAtBitmaps(*image).value();
    for (const Operation& operation : kOperations) {
      CrashRecorder recorder;
      {
        auto layer = OpenQcow2(recorder.NewStore(*image), {.writable = true});
        ASSERT_TRUE(layer) << layer.error().text();
        auto done = operation.apply(*(*layer)->bitmapper());
        ASSERT_TRUE(done) << done.error().text();
      }
      auto whole = recorder.Crash(recorder.boundary(), 1);
      const auto after = LookAtBitmaps(*whole).value();
      ASSERT_NE(after, before);
      for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
        for (uint64_t seed = 0; seed < 5; ++seed) {
          SCOPED_TRACE(fmt::format("{} {} cut {} of {} seed {}", options, operation.name, cut,
                                   recorder.boundary(), seed));
          auto disk = recorder.Crash(cut, seed);
          auto sound = IsSound(*disk);
          ASSERT_TRUE(sound) << sound.error().text();
          ASSERT_TRUE(*sound);
          auto now = LookAtBitmaps(*disk);
          ASSERT_TRUE(now) << now.error().text();
          ASSERT_TRUE(*now == before || *now == after);
          auto layer = OpenQcow2(std::make_unique<WrapperStore>(*disk), {.writable = true});
          ASSERT_TRUE(layer) << layer.error().text();
          ASSERT_EQ((*layer)->info().references.at(0).name.size(), 201u);
          ASSERT_TRUE((*layer)->bitmapper()->AddBitmap({.name = "another"}));
        }
      }
    }
  }
}

TEST_F(BitmapCrash, EveryFailedCallLeavesOneOfTheTwo) {
  auto image = Prepared("cluster_size=4k");
  const auto before = LookAtBitmaps(*image).value();
  for (const Operation& operation : kOperations) {
    for (uint64_t k = 0;; ++k) {
      SCOPED_TRACE(fmt::format("{} call {}", operation.name, k));
      auto disk = image->Clone();
      FaultPlan plan(k, FaultPlan::kAny, EIO, /*for_ever=*/k % 2 == 0);
      bool succeeded = false;
      {
        auto layer =
            OpenQcow2(std::make_unique<FaultStore>(std::make_unique<WrapperStore>(*disk), plan),
                      {.writable = true});
        succeeded = layer && operation.apply(*(*layer)->bitmapper()).has_value();
      }
      auto now = LookAtBitmaps(*disk);
      ASSERT_TRUE(now) << now.error().text();
      if (!plan.fired()) {
        ASSERT_TRUE(succeeded);
        ASSERT_NE(*now, before);
        break;
      }
      if (succeeded) ASSERT_NE(*now, before);
      auto sound = IsSound(*disk);
      ASSERT_TRUE(sound && *sound);
      auto again = OpenQcow2(std::make_unique<WrapperStore>(*disk), {.writable = true});
      ASSERT_TRUE(again) << again.error().text();
    }
  }
}

}  // namespace
}  // namespace platter::qcow2
