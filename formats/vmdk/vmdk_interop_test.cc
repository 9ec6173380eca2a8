// qemu-img and qemu-io as judges: what we write they read, what they write we read.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "cow/create.h"
#include "cow/disk.h"
#include "formats/vmdk/vmdk_testing.h"
#include "io/engine/engine.h"
#include "tests/interop/qemu.h"

namespace platter::vmdk {
namespace {

using testing_support::MustRun;
using testing_support::TempFolder;

constexpr uint64_t kSize = 5 * kMiB + 3 * 512;

std::vector<std::byte> Content1() {
  std::vector<std::byte> bytes(kSize);
  std::ranges::copy(Noise(300 * kKiB, 1), bytes.begin() + 100 * kKiB);
  std::fill_n(bytes.begin() + 2 * kMiB, kMiB, std::byte{'a'});
  std::ranges::copy(Noise(1000, 2), bytes.end() - 1000);
  return bytes;
}

void WriteFile(const std::string& path, ConstBytes bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

std::vector<std::byte> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  ConstBytes bytes = AsBytes(std::string_view(text));
  return {bytes.begin(), bytes.end()};
}

class VmdkInterop : public testing::TestWithParam<std::string> {
 protected:
  Result<std::vector<std::byte>> ReadOurs(const std::string& path) {
    auto disk = TRY(Disk::Open(path, DiskOptions{.format = "vmdk"}, Gate({}), nullptr));
    return Content(*disk);
  }
  TempFolder folder_;
};

TEST_P(VmdkInterop, WeReadWhatQemuWrites) {
  WriteFile(folder_.File("in.raw"), Content1());
  MustRun("qemu-img convert -f raw -O vmdk -o subformat=" + GetParam() + " " +
          folder_.File("in.raw") + " " + folder_.File("a.vmdk"));
  auto got = ReadOurs(folder_.File("a.vmdk"));
  ASSERT_TRUE(got) << got.error().text();
  EXPECT_EQ(*got, Content1());
}

TEST_P(VmdkInterop, QemuReadsWhatWeWrite) {
  NewImageOptions options;
  options.format = "vmdk";
  options.create.size = kSize;
  options.create.options = {{"subformat", GetParam()}};
  {
    auto made = NewImage::Create(folder_.File("a.vmdk"), options, Gate({}), nullptr);
    ASSERT_TRUE(made) << made.error().text();
    WriteFile(folder_.File("in.raw"), Content1());
    auto source =
        Disk::Open(folder_.File("in.raw"), DiskOptions{.format = "raw"}, Gate({}), nullptr);
    ASSERT_TRUE(source);
    auto copied = Copy(**source, (*made)->disk(), {0, kSize}, {.target_is_zero = true});
    ASSERT_TRUE(copied) << copied.error().text();
    ASSERT_TRUE((*made)->Commit());
  }
  MustRun("qemu-img convert -f vmdk -O raw " + folder_.File("a.vmdk") + " " +
          folder_.File("out.raw"));
  EXPECT_TRUE(ReadFile(folder_.File("out.raw")) == Content1());
  auto got = ReadOurs(folder_.File("a.vmdk"));
  ASSERT_TRUE(got) << got.error().text();
  EXPECT_EQ(*got, Content1());
}

INSTANTIATE_TEST_SUITE_P(Subformats, VmdkInterop,
                         testing::Values("monolithicSparse", "monolithicFlat",
                                         "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
                                         "streamOptimized"),
                         [](const auto& info) { return info.param; });

using VmdkInteropOne = VmdkInterop;

TEST_F(VmdkInteropOne, QemuChecksAndChangesWhatWeWrote) {
  NewImageOptions options;
  options.format = "vmdk";
  options.create.size = 200 * kMiB;
  {
    auto made = NewImage::Create(folder_.File("a.vmdk"), options, Gate({}), nullptr);
    ASSERT_TRUE(made) << made.error().text();
    for (uint64_t at : {uint64_t{0}, 33 * kMiB + 700, 199 * kMiB}) {
      ASSERT_TRUE(Write((*made)->disk(), at, Noise(100000, at)));
    }
    ASSERT_TRUE((*made)->Commit());
  }
  MustRun("qemu-img check -f vmdk " + folder_.File("a.vmdk"));
  MustRun("qemu-io -f vmdk -c 'write -P 7 100M 1M' " + folder_.File("a.vmdk"));
  auto disk = Disk::Open(folder_.File("a.vmdk"), DiskOptions{.format = "vmdk"}, Gate({}), nullptr);
  ASSERT_TRUE(disk) << disk.error().text();
  std::vector<std::byte> got(kMiB);
  ASSERT_TRUE(Read(**disk, 100 * kMiB, Bytes(got)));
  EXPECT_EQ(got, std::vector<std::byte>(kMiB, std::byte{7}));
  got.resize(100000);
  ASSERT_TRUE(Read(**disk, 33 * kMiB + 700, Bytes(got)));
  EXPECT_EQ(got, Noise(100000, 33 * kMiB + 700));
}

TEST_F(VmdkInteropOne, QemuReadsOurChildOfItsParentAndWeItsChildOfOurs) {
  MustRun("qemu-img create -q -f vmdk " + folder_.File("p.vmdk") + " 8M");
  MustRun("qemu-io -f vmdk -c 'write -P 1 0 8M' " + folder_.File("p.vmdk"));
  NewImageOptions options;
  options.format = "vmdk";
  options.size_from_parent = true;
  options.create.parent = Reference{Reference::kParent, "p.vmdk", "vmdk", {}, {}, {}, {}};
  {
    auto made = NewImage::Create(folder_.File("c.vmdk"), options, Gate({}), nullptr);
    ASSERT_TRUE(made) << made.error().text();
    ASSERT_TRUE(Write((*made)->disk(), 3 * kMiB + 5, std::vector<std::byte>(70000, std::byte{2})));
    ASSERT_TRUE((*made)->Commit());
  }
  std::vector<std::byte> want(8 * kMiB, std::byte{1});
  std::fill_n(want.begin() + 3 * kMiB + 5, 70000, std::byte{2});
  MustRun("qemu-img convert -f vmdk -O raw " + folder_.File("c.vmdk") + " " +
          folder_.File("out.raw"));
  EXPECT_TRUE(ReadFile(folder_.File("out.raw")) == want);

  MustRun("cd " + folder_.File("") + " && qemu-img create -q -f vmdk -b c.vmdk -F vmdk d.vmdk");
  MustRun("qemu-io -f vmdk -c 'write -P 3 1M 64k' " + folder_.File("d.vmdk"));
  std::fill_n(want.begin() + kMiB, 64 * kKiB, std::byte{3});
  auto got = ReadOurs(folder_.File("d.vmdk"));
  ASSERT_TRUE(got) << got.error().text();
  EXPECT_TRUE(*got == want);

  // Once the parent has changed it is not the parent any more.
  MustRun("qemu-io -f vmdk -c 'write -P 9 0 64k' " + folder_.File("p.vmdk"));
  auto stale = ReadOurs(folder_.File("d.vmdk"));
  ASSERT_FALSE(stale);
  EXPECT_EQ(stale.error().code(), Code::kRefused);
  EXPECT_NE(stale.error().text().find("was changed after"), std::string::npos)
      << stale.error().text();
}

}  // namespace
}  // namespace platter::vmdk
