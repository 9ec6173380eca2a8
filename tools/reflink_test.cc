// Copies that share blocks, on a file system that can: nothing is read, nothing is stored twice,
// and what is written to one afterwards is not seen in the other.
#include <gtest/gtest.h>
#include <sys/statvfs.h>

#include <cstdlib>
#include <fstream>
#include <random>

#include "tools/platter_testing.h"

namespace platter {
namespace {

using testing_support::MustRun;
using testing_support::Outcome;
using testing_support::Shell;

constexpr uint64_t kData = 64 << 20, kSlack = 4 << 20;  // bytes

class ReflinkTest : public PlatterTest {
 protected:
  void SetUp() override {
    Outcome made =
        Shell("mkfs.xfs -q -m reflink=1 -d file,name=" + File("disk") + ",size=400m && mkdir " +
              File("mnt") + " && mount -o loop " + File("disk") + " " + File("mnt"));
    ASSERT_EQ(made.exit_code, 0)
        << made.output << "this test mounts an xfs: apt-get install xfsprogs, and run it as root";
    mounted_ = true;
    std::ofstream raw(On("a.raw"), std::ios::binary);
    std::string noise(1 << 20, '\0');
    std::minstd_rand random(1);
    for (uint64_t at = 0; at < kData; at += noise.size()) {
      for (char& c : noise) c = static_cast<char>(random());
      raw.write(noise.data(), static_cast<std::streamsize>(noise.size()));
    }
    raw.close();
    // A hole in the middle and at the end.
    MustRun("fallocate -p -o 20M -l 5M " + On("a.raw") + " && truncate -s 80M " + On("a.raw"));
  }
  void TearDown() override {
    if (mounted_) MustRun("umount " + File("mnt"));
  }
  std::string On(const std::string& name) { return File("mnt/" + name); }

  // Bytes of the file system that are in use.
  uint64_t Used() {
    MustRun("sync -f " + File("mnt"));
    struct statvfs status;
    EXPECT_EQ(statvfs(File("mnt").c_str(), &status), 0);
    return (status.f_blocks - status.f_bfree) * status.f_frsize;
  }

  // Converts and returns by how many bytes the file system got fuller.
  uint64_t Cost(std::vector<std::string> args) {
    uint64_t before = Used();
    args.insert(args.begin(), "convert");
    Ran ran = Platter(args);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return Used() - before;
  }

  bool mounted_ = false;
};

TEST_F(ReflinkTest, BlocksAreSharedInEachDirection) {
  EXPECT_LT(Cost({"-f", "raw", "-O", "raw", On("a.raw"), On("b.raw")}), kSlack);
  EXPECT_LT(Cost({"-f", "raw", "-O", "qcow2", On("a.raw"), On("b.qcow2")}), kSlack);
  EXPECT_LT(Cost({"-O", "qcow2", On("b.qcow2"), On("c.qcow2")}), kSlack);
  EXPECT_LT(Cost({"-O", "raw", On("c.qcow2"), On("d.raw")}), kSlack);
  MustRun("cmp " + On("a.raw") + " " + On("b.raw") + " && cmp " + On("a.raw") + " " + On("d.raw"));
  for (const char* image : {"b.qcow2", "c.qcow2"}) {
    MustRun("qemu-img check -q " + On(image) + " && qemu-img compare -f raw -F qcow2 " +
            On("a.raw") + " " + On(image));
  }
}

TEST_F(ReflinkTest, WhatIsWrittenLaterIsNotShared) {
  EXPECT_LT(Cost({"-f", "raw", "-O", "qcow2", On("a.raw"), On("b.qcow2")}), kSlack);
  std::string before = Platter({"hash", On("b.qcow2")}).out;
  MustRun("qemu-io -f raw -c 'write -P 1 0 60M' " + On("a.raw"));
  EXPECT_EQ(Platter({"hash", On("b.qcow2")}).out, before);
}

// Not where the bytes have to change, or are asked to be stored for themselves.
TEST_F(ReflinkTest, WhatCannotBeSharedIsCopied) {
  EXPECT_GT(Cost({"-f", "raw", "-O", "raw", "-S", "0", On("a.raw"), On("b.raw")}), kData);
  EXPECT_GT(Cost({"-c", "-f", "raw", "-O", "qcow2", On("a.raw"), On("b.qcow2")}), kData / 2);
  MustRun("cmp " + On("a.raw") + " " + On("b.raw") + " && qemu-img compare -f raw -F qcow2 " +
          On("a.raw") + " " + On("b.qcow2"));
}

}  // namespace
}  // namespace platter
