// Bitmaps of a disk that changes its size: as QEMU leaves them, and never trusted when wrong.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "formats/qcow2/qcow2_bitmaps_testing.h"
#include "formats/qcow2/qcow2_disk.h"
#include "formats/qcow2/qcow2_layer.h"
#include "formats/qcow2/qcow2_subjects_testing.h"
#include "formats/qcow2/qcow2_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"

namespace platter::qcow2 {
namespace {

class BitmapResizeTest : public BitmapTest {
 protected:
  // An image with a bitmap that is enabled, one that is not and one of a coarse granularity.
  void Make(const std::string& name, const std::string& options, uint64_t size) {
    Run(fmt::format("qemu-img create -q -f qcow2 -o {} {} {}", options, name, size));
    Run("qemu-img bitmap --add -g 512 " + name + " on && qemu-img bitmap --add -g 512 " + name +
        " off && qemu-img bitmap --add -g 64k " + name + " coarse");
    Run(fmt::format("qemu-io -c 'write 0 70k' -c 'write {} 4k' -c 'write 1M 300k' {}", size - 4096,
                    name));
    Run("qemu-img bitmap --disable " + name + " off && qemu-img bitmap --disable " + name +
        " coarse");
  }
  Result<> Resize(const std::string& name, uint64_t size) {
    auto layer = TRY(OpenQcow2(OpenFile(name), {.writable = true}));
    TRY(layer->resizer()->Resize(size, Preallocation::kOff));
    return layer->Flush();
  }
};

TEST_F(BitmapResizeTest, FollowTheDiskAsQemuHasThem) {
  for (const char* options : {"cluster_size=512", "cluster_size=4k", "cluster_size=64k",
                              "cluster_size=64k,extended_l2=on"}) {
    SCOPED_TRACE(options);
    Run("rm -f ours theirs");
    Make("ours", options, 3'000'320);
    Run("cp ours theirs");
    uint64_t old_size = 3'000'320;
    for (uint64_t size :
         {3'500'032u, 20'000'256u, 5'000'192u, 1'200'128u, 1'048'576u, 9'000'448u}) {
      SCOPED_TRACE(size);
      auto resized = Resize("ours", size);
      ASSERT_TRUE(resized) << resized.error().text();
      Run(fmt::format("qemu-img resize -q --shrink theirs {}", size));
      auto ours = Look("ours"), theirs = Look("theirs");
      // With us the new part is dirty where a bitmap is enabled.
      if (size > old_size) {
        for (uint64_t bit = DivideUp(old_size, 512u); bit * 512 < size; ++bit) {
          theirs["on"].set.push_back(bit);
        }
      }
      EXPECT_EQ(ours, theirs);
      Run("cp ours theirs");
      old_size = size;
      ExpectClean("ours", "resized");
      // QEMU takes them for its own: it merges one into another, and goes on tracking.
      Run("cp ours tried && qemu-img bitmap --add -g 512 tried sum && qemu-img bitmap --merge off "
          "tried sum && qemu-io -c 'write 100k 1k' tried");
      ExpectClean("tried", "used by QEMU");
    }
  }
}

// A cluster of bits that are all set may be written as one flag; the bits of the new part are not.
TEST_F(BitmapResizeTest, AllOnesEndWhereTheDiskEnded) {
  Run("qemu-img create -q -f qcow2 -o cluster_size=4k a 1000448 && qemu-img bitmap --add -g 512 a "
      "b "
      "&& qemu-io -c 'write 0 1000448' a && qemu-img bitmap --disable a b");
  {
    auto file = OpenFile("a");
    std::vector<std::byte> head(4096);
    ASSERT_TRUE(file->Store::Read(0, Bytes(head)));
    Header header = ParseHeader(head).value();
    std::vector<std::byte> directory(header.bitmaps->directory_size);
    ASSERT_TRUE(file->Store::Read(header.bitmaps->directory_offset, Bytes(directory)));
    uint64_t table = ParseBitmaps(header, directory).value()[0].table_offset;
    ASSERT_TRUE(file->Store::Write(table, AsBytes(be64(kBitmapAllOnes))));
  }
  ASSERT_EQ(Look("a")["b"].set.size(), 1000448u / 512);
  ASSERT_TRUE(Resize("a", 2'000'384));
  EXPECT_EQ(Look("a")["b"].set.size(), 1000448u / 512);
  EXPECT_FALSE(Look("a")["b"].in_use);
  Shell("cd " + Path("") + " && qemu-img check -q -r leaks a");  // of the test's own flag
  ExpectClean("a", "all ones");
}

// What the disk held of its last granule past the new end is gone, and may be in a backup.
TEST_F(BitmapResizeTest, AGranuleThatTheDiskEndedIn) {
  for (bool ends_in_page : {false, true}) {
    // 512 bytes of bits are 4096 granules: the disk ends in the middle of the last one of a page.
    const uint64_t granules = ends_in_page ? 4096 : 30;
    Run("rm -f a && qemu-img create -q -f qcow2 -o cluster_size=512 a 320M && qemu-img bitmap "
        "--add "
        "-g 64k a on");
    ASSERT_TRUE(Resize("a", granules * 65536 - 32768));
    ASSERT_TRUE(Resize("a", granules * 65536 + 32768));
    EXPECT_EQ(Look("a")["on"].set, (std::vector<uint64_t>{granules - 1, granules}));
    ExpectClean("a", "resized");
  }
}

// After the resize the enabled ones are as they were, and go on.
TEST_F(BitmapResizeTest, AWriteAfterTheResizeIsNotMissed) {
  Make("a", "cluster_size=64k", 3'000'320);
  auto layer = OpenQcow2(OpenFile("a"), {.writable = true});
  ASSERT_TRUE(layer) << layer.error().text();
  ASSERT_TRUE((*layer)->resizer()->Resize(4'000'256, Preallocation::kOff));
  EXPECT_FALSE(Look("a")["on"].in_use);
  ASSERT_TRUE(Write(**layer, 900'000, std::vector<std::byte>(3)));
  EXPECT_TRUE(Look("a")["on"].in_use);
  EXPECT_FALSE(Look("a")["off"].in_use);
  ASSERT_TRUE((*layer)->resizer()->Resize(5'000'192, Preallocation::kOff));
  EXPECT_FALSE(Look("a")["on"].in_use);
  auto dirty = DirtyOf(**layer, "on");
  ASSERT_TRUE(dirty) << dirty.error().text();
  EXPECT_NE(std::ranges::find(*dirty, Range{900'000 / 512 * 512, 512}), dirty->end());
  EXPECT_EQ(dirty->back().end(), 5'000'192u);
  layer->reset();
  ExpectClean("a", "written");
}

// One whose table cannot be is left alone, and says that it is not to be trusted.
TEST_F(BitmapResizeTest, ADamagedTableStaysInUse) {
  Make("a", "cluster_size=64k", 3'000'320);
  {
    auto file = OpenFile("a");
    std::vector<std::byte> head(65536);
    ASSERT_TRUE(file->Store::Read(0, Bytes(head)));
    Header header = ParseHeader(head).value();
    std::vector<std::byte> directory(header.bitmaps->directory_size);
    ASSERT_TRUE(file->Store::Read(header.bitmaps->directory_offset, Bytes(directory)));
    const std::vector<Bitmap> bitmaps = ParseBitmaps(header, directory).value();
    for (const Bitmap& bitmap : bitmaps) {
      if (bitmap.info.name != "off") continue;
      ASSERT_TRUE(file->Store::Write(bitmap.table_offset, AsBytes(be64(header.l1_offset))));
    }
  }
  std::vector<std::byte> before(3'000'320), after(before.size());
  ASSERT_TRUE(Read(**OpenQcow2(OpenFile("a"), {}), 0, Bytes(before)));
  ASSERT_TRUE(Resize("a", 9'000'448));
  auto layer = OpenQcow2(OpenFile("a"), {});
  ASSERT_TRUE(layer) << layer.error().text();
  EXPECT_EQ((*layer)->info().size, 9'000'448u);
  ASSERT_TRUE(Read(**layer, 0, Bytes(after)));
  EXPECT_EQ(before, after);
  EXPECT_FALSE((*layer)->info().bitmaps[0].in_use);
  EXPECT_TRUE((*layer)->info().bitmaps[1].in_use);
  EXPECT_FALSE((*layer)->info().bitmaps[2].in_use);
}

// The bitmaps of before, of after, or such as say that they are neither.
TEST_F(BitmapResizeTest, PowerCuts) {
  for (const char* options : {"cluster_size=512", "cluster_size=4k"}) {
    Run("rm -f a");
    Make("a", options, 1'500'160);
    auto file = OpenFile("a");
    std::vector<std::byte> bytes(*file->Size());
    ASSERT_TRUE(file->Store::Read(0, Bytes(bytes)));
    file.reset();
    for (uint64_t size : {20'000'256u, 600'064u}) {
      MemoryStore before{ConstBytes(bytes)};
      const auto old = *LookAtBitmaps(before);
      CrashRecorder recorder;
      auto store = recorder.NewStore(before);
      {
        auto layer = OpenQcow2(std::make_unique<WrapperStore>(*store), {.writable = true});
        ASSERT_TRUE(layer) << layer.error().text();
        auto resized = (*layer)->resizer()->Resize(size, Preallocation::kOff);
        ASSERT_TRUE(resized) << resized.error().text();
      }
      auto end = recorder.Crash(recorder.boundary(), 1);
      const auto fresh = *LookAtBitmaps(*end);
      ASSERT_EQ(fresh.size(), 3u);
      EXPECT_FALSE(fresh.at("on").in_use || fresh.at("off").in_use || fresh.at("coarse").in_use);
      for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
        for (uint64_t variant = 0; variant < 6; ++variant) {
          SCOPED_TRACE(fmt::format("{} to {}, cut after event {} of {}, variant {}", options, size,
                                   cut, recorder.boundary(), variant));
          auto image = recorder.Crash(cut, variant);
          auto sound = IsSound(*image);
          ASSERT_TRUE(sound) << sound.error().text();
          auto layer = OpenQcow2(std::make_unique<WrapperStore>(*image), {});
          ASSERT_TRUE(layer) << layer.error().text();
          const auto now = *LookAtBitmaps(*image);
          for (const auto& [name, seen] : now) {
            if (seen.in_use) continue;
            ASSERT_EQ(seen, (*layer)->info().size == size ? fresh.at(name) : old.at(name)) << name;
          }
          auto writer = OpenQcow2(std::make_unique<WrapperStore>(*image), {.writable = true});
          ASSERT_TRUE(writer) << writer.error().text();
        }
      }
    }
  }
}

}  // namespace
}  // namespace platter::qcow2
