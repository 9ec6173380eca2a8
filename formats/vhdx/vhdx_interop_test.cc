// QEMU's tools as judges: of what we make and write, of chains through cow/, and of the log that a
// power cut leaves.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "cow/create.h"
#include "cow/disk.h"
#include "formats/vhdx/vhdx_create.h"
#include "formats/vhdx/vhdx_image.h"
#include "formats/vhdx/vhdx_subjects_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/file_store.h"
#include "tests/interop/qemu.h"
#include "tests/model/random.h"

namespace platter::vhdx {
namespace {

using testing_support::MustRun;
using testing_support::TempFolder;

void Save(const MemoryStore& store, const std::string& path) {
  std::vector<std::byte> bytes = store.Contents();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

// Random writes, here and in `bytes`.
void Scribble(Layer& layer, std::vector<std::byte>& bytes, uint64_t seed, int count) {
  model::Random random(seed);
  for (int i = 0; i < count; ++i) {
    uint64_t at = random.Below(bytes.size()), length = 1 + random.Below(300'000);
    Bytes part = Bytes(bytes).subspan(at, std::min<uint64_t>(length, bytes.size() - at));
    random.Fill(part);
    auto written = Write(layer, at, ConstBytes(part));
    ASSERT_TRUE(written) << written.error().text();
  }
}

TEST(VhdxInterop, QemuReadsWhatWeWrite) {
  TempFolder folder;
  const std::vector<std::map<std::string, std::string>> all = {{},
                                                               {{"subformat", "fixed"}},
                                                               {{"block_size", "1M"}},
                                                               {{"block_state_zero", "off"}},
                                                               {{"log_size", "3M"}}};
  for (const auto& options : all) {
    const std::string image = folder.File("a.vhdx"), raw = folder.File("a.raw");
    const uint64_t size = 33 * kMiB + 512;
    std::vector<std::byte> bytes(size);
    {
      NewImageOptions make;
      make.format = "vhdx";
      make.replace = true;
      make.create.size = size;
      make.create.options = options;
      auto made = NewImage::Create(image, make, Gate({}), nullptr);
      ASSERT_TRUE(made) << made.error().text();
      Scribble((*made)->disk(), bytes, 1, 12);
      ASSERT_TRUE((*made)->Commit());
    }
    MustRun("qemu-img check -f vhdx " + image);
    {
      DiskOptions open;
      open.format = "vhdx";
      open.file.writable = true;
      auto disk = Disk::Open(image, open, Gate({}), nullptr);
      ASSERT_TRUE(disk) << disk.error().text();
      Scribble(**disk, bytes, 2, 12);
      ASSERT_TRUE((*disk)->Flush());
    }
    MustRun("qemu-img check -f vhdx " + image);
    std::ofstream(raw, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(size));
    MustRun("qemu-img compare -f vhdx -F raw " + image + " " + raw);
  }
}

TEST(VhdxInterop, WeReadWhatQemuWrites) {
  TempFolder folder;
  const std::string image = folder.File("q.vhdx");
  MustRun("qemu-img create -q -f vhdx -o block_size=1M " + image + " 40M");
  MustRun("qemu-io -f vhdx -c 'write -P 17 3M 5M' -c 'write -P 34 20M 512' " + image);
  auto disk = Disk::Open(image, DiskOptions(), Gate({}), nullptr);
  ASSERT_TRUE(disk) << disk.error().text();
  std::vector<std::byte> got(40 * kMiB), expected(40 * kMiB);
  std::fill_n(expected.begin() + 3 * kMiB, 5 * kMiB, std::byte{17});
  std::fill_n(expected.begin() + 20 * kMiB, 512, std::byte{34});
  ASSERT_TRUE(Read(**disk, 0, Bytes(got)));
  EXPECT_TRUE(got == expected);
  ASSERT_TRUE(IsSound(*FileStore::Open(image, FileStoreOptions()).value()));
}

// qemu-img 7.2 reads no differencing VHDX; so we judge ourselves, through the gate.
TEST(VhdxInterop, AChildFindsItsParentAndNoticesThatItChanged) {
  TempFolder folder;
  const std::string base = folder.File("base.vhdx"), child = folder.File("child.vhdx");
  MustRun("qemu-img create -q -f vhdx -o block_size=1M " + base + " 8M");
  MustRun("qemu-io -f vhdx -c 'write -P 17 0 8M' " + base);
  std::vector<std::byte> bytes(8 * kMiB, std::byte{17});
  {
    NewImageOptions make;
    make.format = "vhdx";
    make.size_from_parent = true;
    make.create.parent = Reference{.role = Reference::kParent,
                                   .name = "base.vhdx",
                                   .format = "vhdx",
                                   .paths = {},
                                   .id = {},
                                   .versions = {},
                                   .modified = {}};
    auto made = NewImage::Create(child, make, Gate({}), nullptr);
    ASSERT_TRUE(made) << made.error().text();
    Scribble((*made)->disk(), bytes, 3, 10);
    ASSERT_TRUE((*made)->Commit());
  }
  {
    auto disk = Disk::Open(child, DiskOptions(), Gate({}), nullptr);
    ASSERT_TRUE(disk) << disk.error().text();
    std::vector<std::byte> got(bytes.size());
    ASSERT_TRUE(Read(**disk, 0, Bytes(got)));
    EXPECT_TRUE(got == bytes);
  }
  // The file alone was moved: its name beside the child is tried, too.
  MustRun("qemu-io -f vhdx -c 'write -P 18 0 512' " + base);
  auto changed = Disk::Open(child, DiskOptions(), Gate({}), nullptr);
  ASSERT_FALSE(changed);
  EXPECT_EQ(changed.error().code(), Code::kRefused);
  EXPECT_NE(changed.error().text().find("was changed after"), std::string::npos);
  MustRun("rm " + base);
  EXPECT_FALSE(Disk::Open(child, DiskOptions(), Gate({}), nullptr));
}

// At each moment of a run qemu-img replays our log to what we read ourselves.
TEST(VhdxInterop, QemuReplaysOurLog) {
  TempFolder folder;
  MemoryStore base;
  const uint64_t size = 6 * kMiB;
  ASSERT_TRUE(CreateImage({"", size, 1, {{"block_size", "1M"}}}, base));
  CrashRecorder recorder;
  auto store = recorder.NewStore(base);
  std::vector<std::byte> bytes(size);
  {
    auto layer = OpenImage(*store);
    ASSERT_TRUE(layer) << layer.error().text();
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      Scribble(**layer, bytes, seed, 2);
      ASSERT_TRUE((*layer)->Flush());
    }
  }
  const std::string image = folder.File("cut.vhdx"), raw = folder.File("cut.raw");
  int replayed_images = 0;
  for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
    auto disk = recorder.Crash(cut, 2);
    std::unique_ptr<ReplayedStore> replayed;
    auto look = ReadImage(*disk, replayed);
    ASSERT_TRUE(look) << cut << ": " << look.error().text();
    if (!replayed) continue;
    ++replayed_images;
    Save(*disk, image);
    auto layer = OpenImage(*disk, false);
    ASSERT_TRUE(layer) << layer.error().text();
    std::vector<std::byte> got(size);
    ASSERT_TRUE(Read(**layer, 0, Bytes(got))) << cut;
    std::ofstream(raw, std::ios::binary)
        .write(reinterpret_cast<const char*>(got.data()), static_cast<std::streamsize>(size));
    MustRun("qemu-img check -f vhdx -r all " + image);
    MustRun("qemu-img compare -f vhdx -F raw " + image + " " + raw);
  }
  EXPECT_GT(replayed_images, 10);
}

}  // namespace
}  // namespace platter::vhdx
