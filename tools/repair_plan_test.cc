// check --dry-run, --undo and --apply-undo.
#include <gmock/gmock.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tools/platter_testing.h"

namespace platter {
namespace {

using testing::HasSubstr;
using testing_support::MustRun;

class RepairPlanTest : public PlatterTest {
 protected:
  // An image with a leak and a refcount that is too low.
  std::string Damaged() {
    const std::string path = File("a");
    MustRun("rm -f " + path + " && qemu-img create -q -f qcow2 " + path +
            " 8M && qemu-io -c 'write 0 1M' " + path);
    // The refcounts of clusters 6 and 40, 16 bits each, in the block at 0x20000.
    MustRun("printf '\\0\\0' | dd conv=notrunc bs=1 seek=$((0x20000+12)) status=none of=" + path);
    MustRun("truncate -s 4M " + path);
    MustRun("printf '\\0\\1' | dd conv=notrunc bs=1 seek=$((0x20000+80)) status=none of=" + path);
    return path;
  }
  std::string Hash(const std::string& path) { return MustRun("sha256sum < " + path); }
};

TEST_F(RepairPlanTest, DryRunChangesNothing) {
  const std::string path = Damaged(), before = Hash(path);
  Ran ran = Platter({"check", "-r", "all", "--dry-run", path});
  EXPECT_EQ(ran.code, 0) << ran.out << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("(would be repaired)"));
  EXPECT_THAT(ran.out, HasSubstr("would write"));
  EXPECT_THAT(ran.out, HasSubstr("Would repair 1 leaks and "));
  EXPECT_EQ(Hash(path), before);
  auto json = nlohmann::json::parse(
      Platter({"check", "-r", "all", "--dry-run", "--output", "json", path}).out);
  EXPECT_EQ(json["dry-run"], true);
  ASSERT_FALSE(json["writes"].empty());
  EXPECT_EQ(json["leaks-fixed"], 1);
  // What it says is what it does.
  MustRun("cp " + path + " " + File("b"));
  EXPECT_EQ(Platter({"check", "-r", "all", path}).code, 0);
  for (const auto& write : json["writes"]) {
    MustRun(fmt::format("dd if={} of={} bs=512 conv=notrunc status=none skip={} seek={} count={}",
                        path, File("b"), write["offset"].get<uint64_t>() / 512,
                        write["offset"].get<uint64_t>() / 512,
                        (write["length"].get<uint64_t>() + 511) / 512));
  }
  EXPECT_EQ(Hash(path), Hash(File("b")));
}

TEST_F(RepairPlanTest, UndoPutsItBack) {
  const std::string path = Damaged(), before = Hash(path);
  EXPECT_EQ(Platter({"check", "-r", "all", "--undo", File("u"), path}).code, 0);
  MustRun("qemu-img check " + path);
  EXPECT_NE(Hash(path), before);
  // A second repair must not take the way back away.
  Ran again = Platter({"check", "-r", "all", "--undo", File("u"), path});
  EXPECT_EQ(again.code, 0) << "there is nothing to repair";
  Ran undone = Platter({"check", "--apply-undo", File("u"), path});
  EXPECT_EQ(undone.code, 0) << undone.err;
  EXPECT_EQ(Hash(path), before);
  EXPECT_EQ(Platter({"check", "--apply-undo", File("u"), path}).code, 0) << "twice does no harm";
  EXPECT_EQ(Hash(path), before);
  Ran taken = Platter({"check", "-r", "all", "--undo", File("u"), path});
  EXPECT_EQ(taken.code, 1) << "the file is there";
  EXPECT_EQ(Hash(path), before);
}

// Space that is given back to the file system is part of the plan, and comes back.
TEST_F(RepairPlanTest, LostGrains) {
  const std::string path = File("a.vmdk");
  MustRun("qemu-img create -q -f vmdk " + path + " 64M && qemu-io -f vmdk -c 'write -P 5 0 1M' " +
          path + " && head -c 3M /dev/urandom >> " + path + " && truncate -s +1G " + path);
  const std::string before = Hash(path);
  EXPECT_EQ(Platter({"check", path}).code, 3);
  Ran plan = Platter({"check", "-r", "leaks", "--dry-run", path});
  EXPECT_EQ(plan.code, 0) << plan.out;
  EXPECT_THAT(plan.out, HasSubstr("(would be repaired)"));
  EXPECT_THAT(plan.out, HasSubstr("would write"));
  EXPECT_EQ(Platter({"check", "-r", "leaks", "--undo", File("u"), path}).code, 0);
  EXPECT_EQ(Platter({"check", path}).code, 0);
  EXPECT_EQ(Platter({"check", "--apply-undo", File("u"), path}).code, 0);
  EXPECT_EQ(Hash(path), before);
}

// The size that the file has while its end is being put back.
TEST_F(RepairPlanTest, AnInterruptedUndoIsAppliedAgain) {
  const std::string path = File("a");
  MustRun("qemu-img create -q -f qcow2 " + path + " 8M && qemu-io -c 'write 0 1M' " + path);
  // No refcount table: new structures are written behind the end.
  MustRun("dd if=/dev/zero conv=notrunc bs=64k count=1 seek=1 status=none of=" + path);
  const std::string before = Hash(path);
  const std::string size = MustRun("stat -c %s " + path);
  EXPECT_EQ(Platter({"check", "-r", "all", "--undo", File("u"), path}).code, 0);
  MustRun("test $(stat -c %s " + path + ") -gt $((" + size.substr(0, size.size() - 1) +
          " + 65536)) && truncate -s -65536 " + path);
  Ran undone = Platter({"check", "--apply-undo", File("u"), path});
  EXPECT_EQ(undone.code, 0) << undone.err;
  EXPECT_EQ(Hash(path), before);
}

TEST_F(RepairPlanTest, UndoOfAnImageThatWasChangedSince) {
  const std::string path = Damaged();
  EXPECT_EQ(Platter({"check", "-r", "all", "--undo", File("u"), path}).code, 0);
  MustRun("qemu-io -c 'write 6M 64k' " + path);
  const std::string now = Hash(path);
  Ran undone = Platter({"check", "--apply-undo", File("u"), path});
  EXPECT_EQ(undone.code, 1);
  EXPECT_THAT(undone.err, HasSubstr("not as the repair left it"));
  EXPECT_EQ(Hash(path), now);
  std::ofstream(File("short")) << "platter undo 1\n";
  EXPECT_THAT(Platter({"check", "--apply-undo", File("short"), path}).err, HasSubstr("no undo file"));
}

}  // namespace
}  // namespace platter
