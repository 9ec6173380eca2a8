// platter amend and compact on the command line.
#include <gmock/gmock.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include "tools/platter_testing.h"

namespace platter {
namespace {

using testing::HasSubstr;
using testing_support::MustRun;

class AmendCommandTest : public PlatterTest {
 protected:
  void Do(std::vector<std::string> args) {
    Ran ran = Platter(args);
    ASSERT_EQ(ran.code, 0) << ran.err;
  }
  std::string Info(const std::string& name) { return MustRun("qemu-img info " + File(name)); }
};

TEST_F(AmendCommandTest, InPlace) {
  MustRun("qemu-img create -q -f qcow2 " + File("a") +
          " 8M && qemu-io -c 'write -P 5 0 1M' -c "
          "'write -z 2M 64k' " +
          File("a") + " && cp " + File("a") + " " + File("was"));
  Do({"amend", "-o", "compat=0.10", File("a")});
  EXPECT_THAT(Info("a"), HasSubstr("compat: 0.10"));
  MustRun("qemu-img check " + File("a") + " && qemu-img compare " + File("a") + " " + File("was"));
  Do({"amend", "-o", "compat=1.1,size=16M", "-o", "lazy_refcounts=on,refcount_bits=32", File("a")});
  EXPECT_THAT(Info("a"), HasSubstr("refcount bits: 32"));
  EXPECT_THAT(Info("a"), HasSubstr("16 MiB"));
  MustRun("qemu-img check " + File("a"));
  EXPECT_THAT(Platter({"amend", "-o", "help"}).out, HasSubstr("encrypt.keyslot"));
  EXPECT_THAT(Platter({"amend", "-o", "size=1M", File("a")}).err, HasSubstr("--shrink"));
  EXPECT_THAT(Platter({"amend", "-o", "nonsense=1", File("a")}).err, HasSubstr("nonsense"));
}

// Version 2 over a parent: its zeros become data.
TEST_F(AmendCommandTest, ZerosOverAParent) {
  MustRun("qemu-img create -q -f raw " + File("base") +
          " 8M && qemu-io -f raw -c 'write -P 9 0 8M' " + File("base") +
          " && qemu-img create -q -f qcow2 -b base -F raw " + File("a") +
          " && qemu-io -c 'write -z 1M 200k' -c 'write -P 1 3M 64k' " + File("a") +
          " && qemu-img convert -O raw " + File("a") + " " + File("want"));
  Do({"amend", "-o", "compat=v2", File("a")});
  MustRun("qemu-img check " + File("a") + " && qemu-img compare -F raw " + File("a") + " " +
          File("want"));
}

TEST_F(AmendCommandTest, Anew) {
  MustRun("qemu-img create -q -f raw " + File("base") +
          " 8M && qemu-io -f raw -c 'write -P 9 0 8M' " + File("base") +
          " && qemu-img create -q -f qcow2 -b base -F raw " + File("a") +
          " && qemu-img bitmap --add " + File("a") +
          " b && qemu-io -c 'write -z 1M 256k' -c "
          "'write -P 1 3M 64k' " +
          File("a") + " && chmod 640 " + File("a") + " && qemu-img convert -O raw " + File("a") +
          " " + File("want"));
  Do({"amend", "-o", "cluster_size=4k,compression_type=zstd", File("a")});
  EXPECT_THAT(Info("a"), HasSubstr("cluster_size: 4096"));
  EXPECT_THAT(Info("a"), HasSubstr("compression type: zstd"));
  EXPECT_THAT(Info("a"), HasSubstr("backing file: base"));
  MustRun("qemu-img check " + File("a") + " && qemu-img compare -F raw " + File("a") + " " +
          File("want"));
  EXPECT_THAT(Platter({"map", "--bitmap", "b", File("a")}).out, HasSubstr("0x300000"));
  struct stat status{};
  ASSERT_EQ(stat(File("a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
  // Only what was its own is its own.
  auto map = nlohmann::json::parse(MustRun("qemu-img map --output=json " + File("a")));
  uint64_t own = 0;
  for (const auto& entry : map) own += entry["depth"] == 0 ? entry["length"].get<uint64_t>() : 0;
  EXPECT_EQ(own, 320u * 1024);

  MustRun("qemu-img snapshot -c s " + File("a"));
  EXPECT_THAT(Platter({"amend", "-o", "cluster_size=64k", File("a")}).err, HasSubstr("snapshots"));
  MustRun("qemu-img check " + File("a"));
}

// A larger cluster of an overlay gets from the parent what the smaller ones did not hold.
TEST_F(AmendCommandTest, LargerClustersOverAParent) {
  MustRun("qemu-img create -q -f raw " + File("base") +
          " 8M && qemu-io -f raw -c 'write -P 9 0 8M' " + File("base"));
  for (const std::string small : {"cluster_size=4k", "cluster_size=64k,extended_l2=on"}) {
    SCOPED_TRACE(small);
    MustRun("rm -f " + File("a") + " && qemu-img create -q -f qcow2 -o " + small +
            " -b base -F raw " + File("a") +
            " && qemu-io -c 'write -z 1M 4k' -c 'write -P 1 3M 4k' -c 'write -P 2 3080k 4k' " +
            File("a") + " && qemu-img convert -O raw " + File("a") + " " + File("want"));
    Do({"amend", "-o", "cluster_size=64k,extended_l2=off", File("a")});
    EXPECT_THAT(Info("a"), HasSubstr("cluster_size: 65536"));
    MustRun("qemu-img check " + File("a") + " && qemu-img compare -F raw " + File("a") + " " +
            File("want"));
  }
}

TEST_F(AmendCommandTest, CompressedStaysCompressed) {
  MustRun("yes platter | head -c 4M > " + File("r") + "; qemu-img convert -c -O qcow2 " +
          File("r") + " " + File("a"));
  Do({"amend", "-o", "compression_type=zstd", File("a")});
  MustRun("qemu-img compare -F raw " + File("a") + " " + File("r") + " && qemu-img check " +
          File("a"));
  struct stat status{};
  ASSERT_EQ(stat(File("a").c_str(), &status), 0);
  EXPECT_LT(status.st_size, 1 << 20);
}

TEST_F(AmendCommandTest, Compact) {
  MustRun("qemu-img create -q -f raw " + File("base") +
          " 8M && qemu-io -f raw -c 'write -P 9 0 1M' " + File("base") +
          " && qemu-img create -q -f qcow2 -b base -F raw " + File("a") +
          " && qemu-io -c 'write -P 1 0 8M' -c 'write -P 0 0 6M' " + File("a") +
          " && qemu-img convert -O raw " + File("a") + " " + File("want"));
  Ran ran = Platter({"compact", "--output", "json", File("a")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  auto json = nlohmann::json::parse(ran.out);
  EXPECT_GT(json["size-before"], 8u << 20);
  EXPECT_LT(json["size-after"], 3u << 20);
  struct stat status{};
  ASSERT_EQ(stat(File("a").c_str(), &status), 0);
  EXPECT_EQ(json["size-after"], static_cast<uint64_t>(status.st_size));
  MustRun("qemu-img check " + File("a") + " && qemu-img compare -F raw " + File("a") + " " +
          File("want"));
  Ran raw = Platter({"compact", "-f", "raw", File("base")});
  EXPECT_EQ(raw.code, 1);
  EXPECT_THAT(raw.err, HasSubstr("cannot be compacted"));
}

}  // namespace
}  // namespace platter
