// With qemu-img as the other side, and with chains of files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "cow/create.h"
#include "cow/disk.h"
#include "io/engine/engine.h"
#include "tests/interop/qemu.h"
#include "tests/model/random.h"

namespace platter {
namespace {

using testing::HasSubstr;
using testing_support::MustRun;

class VhdInterop : public testing::Test {
 protected:
  std::string File(const std::string& name) const { return folder_.File(name); }

  std::unique_ptr<Disk> Open(const std::string& name, bool writable = false) {
    DiskOptions options{.format = "vpc", .file = {.writable = writable}};
    auto disk = Disk::Open(File(name), options, Gate({}), &warnings_);
    EXPECT_TRUE(disk) << disk.error().text();
    return disk ? std::move(*disk) : nullptr;
  }

  // Why it does not open.
  std::string Refusal(const std::string& name) {
    auto disk = Disk::Open(File(name), DiskOptions{.format = "vpc"}, Gate({}), nullptr);
    return disk ? std::string() : disk.error().text();
  }

  void Create(const std::string& name, uint64_t size, std::map<std::string, std::string> options,
              const std::string& parent = "") {
    NewImageOptions create{.format = "vpc"};
    create.create.size = size;
    create.create.options = std::move(options);
    if (!parent.empty()) create.create.parent = Reference{.name = parent, .format = "vpc"};
    create.size_from_parent = !parent.empty();
    auto image = NewImage::Create(File(name), create, Gate({}), &warnings_);
    ASSERT_TRUE(image) << image.error().text();
    auto committed = (*image)->Commit();
    ASSERT_TRUE(committed) << committed.error().text();
  }

  // Writes to the image and to `flat`, which is what it should read as.
  void Scribble(Disk& disk, std::vector<std::byte>& flat, uint64_t seed) {
    model::Random random(seed);
    for (int i = 0; i < 20; ++i) {
      uint64_t at = random.Below(flat.size());
      uint64_t length = std::min<uint64_t>(1 + random.Below(100000), flat.size() - at);
      Bytes part = Bytes(flat).subspan(at, length);
      random.Fill(part);
      auto written = Write(disk, at, ConstBytes(part));
      ASSERT_TRUE(written) << written.error().text();
    }
    ASSERT_TRUE(disk.Flush());
  }

  std::vector<std::byte> Slurp(const std::string& name) {
    std::ifstream file(File(name), std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(file)), {});
    ConstBytes bytes = AsBytes(std::string_view(text));
    return {bytes.begin(), bytes.end()};
  }

  std::vector<std::byte> ReadAll(Disk& disk) {
    std::vector<std::byte> bytes(disk.info().size);
    auto read = Read(disk, 0, Bytes(bytes));
    EXPECT_TRUE(read) << read.error().text();
    return bytes;
  }

  testing_support::TempFolder folder_;
  std::vector<std::string> warnings_;
};

TEST_F(VhdInterop, OthersReadWhatWeWrite) {
  struct Case {
    uint64_t size;
    std::map<std::string, std::string> options;
  };
  for (const Case& each : {Case{20 * kMiB, {}}, Case{20 * kMiB + 512, {{"force_size", "on"}}},
                           Case{20 * kMiB, {{"subformat", "fixed"}}},
                           Case{5 * kMiB, {{"subformat", "fixed"}, {"force_size", "on"}}},
                           Case{9 * kMiB, {{"block_size", "512K"}}}}) {
    std::filesystem::remove(File("a.vhd"));
    Create("a.vhd", each.size, each.options);
    auto disk = Open("a.vhd", true);
    ASSERT_TRUE(disk);
    std::vector<std::byte> flat(disk->info().size);
    EXPECT_GE(flat.size(), each.size);
    if (each.options.contains("force_size")) {
      EXPECT_EQ(flat.size(), each.size);
    }
    Scribble(*disk, flat, each.size);
    disk.reset();
    MustRun("qemu-img convert -f vpc -O raw " + File("a.vhd") + " " + File("raw"));
    EXPECT_TRUE(Slurp("raw") == flat) << each.size;
  }
}

TEST_F(VhdInterop, WeReadWhatOthersWrite) {
  for (const char* options : {"subformat=dynamic", "subformat=dynamic,force_size=on",
                              "subformat=fixed", "subformat=fixed,force_size=on"}) {
    MustRun(fmt::format("qemu-img create -q -f vpc -o {} {} 20M", options, File("q.vhd")));
    MustRun("qemu-io -f vpc -c 'write -P 17 3M 100k' -c 'write -P 34 9000512 512' " +
            File("q.vhd"));
    MustRun("qemu-img convert -f vpc -O raw " + File("q.vhd") + " " + File("raw"));
    auto disk = Open("q.vhd", true);
    ASSERT_TRUE(disk);
    std::vector<std::byte> flat = Slurp("raw");
    EXPECT_TRUE(ReadAll(*disk) == flat) << options;
    Scribble(*disk, flat, 5);
    disk.reset();
    MustRun("qemu-img convert -f vpc -O raw " + File("q.vhd") + " " + File("raw"));
    EXPECT_TRUE(Slurp("raw") == flat) << options << ", written by us";
  }
}

TEST_F(VhdInterop, ChainsReadThrough) {
  Create("base.vhd", 12 * kMiB, {});
  auto disk = Open("base.vhd", true);
  std::vector<std::byte> flat(disk->info().size);
  Scribble(*disk, flat, 1);
  disk.reset();
  Create("middle.vhd", 0, {}, "base.vhd");
  disk = Open("middle.vhd", true);
  ASSERT_EQ(disk->depth(), 2u);
  EXPECT_TRUE(ReadAll(*disk) == flat);
  Scribble(*disk, flat, 2);
  disk.reset();
  Create("top.avhd", 0, {}, "middle.vhd");
  disk = Open("top.avhd", true);
  ASSERT_EQ(disk->depth(), 3u);
  Scribble(*disk, flat, 3);
  disk.reset();
  EXPECT_TRUE(ReadAll(*Open("top.avhd")) == flat);
  // The folder moves: the paths are relative.
  std::filesystem::create_directory(File("moved"));
  for (const char* name : {"base.vhd", "middle.vhd", "top.avhd"}) {
    std::filesystem::rename(File(name), File(std::string("moved/") + name));
  }
  EXPECT_TRUE(ReadAll(*Open("moved/top.avhd")) == flat);
}

// qemu-img 7.2 reads such an image as if its parent were empty, and exits with 0.
TEST_F(VhdInterop, WithoutItsParentItIsNotRead) {
  Create("base.vhd", 12 * kMiB, {});
  Create("top.vhd", 0, {}, "base.vhd");
  std::filesystem::rename(File("base.vhd"), File("elsewhere"));
  EXPECT_TRUE(Open("top.vhd")) << "found by its id in the same folder";
  std::filesystem::remove(File("elsewhere"));
  EXPECT_THAT(Refusal("top.vhd"), HasSubstr("base.vhd"));
  Create("base.vhd", 12 * kMiB, {});
  EXPECT_THAT(Refusal("top.vhd"), HasSubstr("is not the image that this one was made on"));
}

TEST_F(VhdInterop, ParentsOfOtherFormatsAreRefused) {
  MustRun("qemu-img create -q -f qcow2 " + File("base.qcow2") + " 12M");
  NewImageOptions create{.format = "vpc"};
  create.create.parent = Reference{.name = "base.qcow2", .format = "qcow2"};
  create.size_from_parent = true;
  auto image = NewImage::Create(File("top.vhd"), create, Gate({}), nullptr);
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().code(), Code::kUnsupported);
}

TEST_F(VhdInterop, AChangedParentIsWorthAWarning) {
  Create("base.vhd", 12 * kMiB, {});
  Create("top.vhd", 0, {}, "base.vhd");
  warnings_.clear();
  Open("top.vhd");
  EXPECT_TRUE(warnings_.empty()) << warnings_[0];
  MustRun("touch -d '2001-02-03' " + File("base.vhd"));
  Open("top.vhd");
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(warnings_[0], HasSubstr("changed"));
}

}  // namespace
}  // namespace platter
