#include "cow/overlay.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/interop/qemu.h"

namespace platter {
namespace {

using testing_support::MustRun;

class OverlayTest : public testing::Test {
 protected:
  std::string File(const std::string& name) { return folder_.File(name); }
  std::string Names() { return MustRun("cd " + File("") + " && ls -A | sort | tr '\\n' ' '"); }

  testing_support::TempFolder folder_;
  Gate gate_{GatePolicy{}};
};

TEST_F(OverlayTest, ASnapshotIsAFileOfItsOwn) {
  const std::string image = File("disk.qcow2");
  MustRun("qemu-img create -q -f qcow2 " + image + " 8M && qemu-io -c 'write -P 1 0 1M' " + image +
          " && chmod 640 " + image + " && chown 1234:1235 " + image);
  auto taken = TakeExternalSnapshot(image, SnapshotPath(image, "before"), {}, gate_, nullptr);
  ASSERT_TRUE(taken.has_value()) << taken.error().text();
  EXPECT_EQ(Names(), "disk.before.qcow2 disk.qcow2 ");
  EXPECT_NE(MustRun("qemu-img info " + image).find("backing file: disk.before.qcow2"),
            std::string::npos);
  MustRun("qemu-io -c 'read -P 1 0 1M' -c 'write -P 2 0 64k' " + image);
  MustRun("qemu-io -r -c 'read -P 1 0 1M' " + File("disk.before.qcow2"));
  EXPECT_EQ(MustRun("stat -c '%a %u %g' " + image), "640 1234 1235\n");
  // Once more, onto that; and the same name is taken.
  taken = TakeExternalSnapshot(image, SnapshotPath(image, "before"), {}, gate_, nullptr);
  ASSERT_FALSE(taken.has_value());
  EXPECT_NE(taken.error().text().find("exists"), std::string::npos);
  taken = TakeExternalSnapshot(image, SnapshotPath(image, "second"), {}, gate_, nullptr);
  ASSERT_TRUE(taken.has_value()) << taken.error().text();
  MustRun("qemu-io -r -c 'read -P 2 0 64k' -c 'read -P 1 64k 900k' " + image);
  MustRun("qemu-img check -q " + image);
}

TEST_F(OverlayTest, EachFormatCanHaveOne) {
  for (std::string format : {"vmdk", "vdi", "vhdx", "vpc", "raw"}) {
    SCOPED_TRACE(format);
    const std::string image = File("disk." + format);
    MustRun(
        fmt::format("qemu-img create -q -f {0} {1} 64M && qemu-io -f {0} -c 'write -P 5 0 1M' {1}",
                    format, image));
    ExternalSnapshotOptions options;
    options.open.format = format;
    auto taken = TakeExternalSnapshot(image, SnapshotPath(image, "s"), options, gate_, nullptr);
    ASSERT_TRUE(taken.has_value()) << taken.error().text();
    auto disk = Disk::Open(image, {}, gate_, nullptr);
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    EXPECT_EQ((*disk)->depth(), 2u);
    std::vector<std::byte> bytes(kMiB);
    ASSERT_TRUE(Read(**disk, 0, Bytes(bytes)).has_value());
    EXPECT_EQ(bytes, std::vector(kMiB, std::byte{5}));
    EXPECT_EQ((*disk)->info().format, format == "raw" ? "qcow2" : format);
  }
}

// In another folder the image would not find its parent.
TEST_F(OverlayTest, ASnapshotThatFailsLeavesNoSecondName) {
  const std::string image = File("disk.qcow2");
  MustRun("cd " + File("") +
          " && mkdir sub && truncate -s 8M base && qemu-img create -q -f qcow2 "
          "-b base -F raw disk.qcow2");
  auto taken = TakeExternalSnapshot(image, File("sub/s.qcow2"), {}, gate_, nullptr);
  ASSERT_FALSE(taken.has_value());
  EXPECT_NE(taken.error().text().find("base"), std::string::npos) << taken.error().text();
  EXPECT_EQ(Names(), "base disk.qcow2 sub ");
  EXPECT_EQ(MustRun("ls -A " + File("sub")), "");
}

// A crash between the steps: the second name is there, the overlay is not.
TEST_F(OverlayTest, AnInterruptedSnapshotIsTakenUp) {
  const std::string image = File("disk.qcow2");
  MustRun("qemu-img create -q -f qcow2 " + image + " 8M && ln " + image + " " +
          File("disk.s.qcow2") + " && echo half > " + File(".disk.qcow2.platter-overlay"));
  auto taken = TakeExternalSnapshot(image, SnapshotPath(image, "s"), {}, gate_, nullptr);
  ASSERT_TRUE(taken.has_value()) << taken.error().text();
  EXPECT_EQ(Names(), "disk.qcow2 disk.s.qcow2 ");
}

TEST_F(OverlayTest, AnImageInUseIsRefused) {
  const std::string image = File("disk.qcow2");
  MustRun("qemu-img create -q -f qcow2 " + image + " 8M");
  auto writer = Disk::Open(image, {.file = {.writable = true}}, gate_, nullptr);
  ASSERT_TRUE(writer.has_value());
  auto taken = TakeExternalSnapshot(image, SnapshotPath(image, "s"), {}, gate_, nullptr);
  ASSERT_FALSE(taken.has_value());
  EXPECT_EQ(taken.error().code(), Code::kRefused);
  EXPECT_EQ(Names(), "disk.qcow2 ");
}

TEST_F(OverlayTest, ManyClonesOverOneBase) {
  const std::string base = File("base.raw");
  MustRun("truncate -s 8M " + base + " && qemu-io -f raw -c 'write -P 1 1M 1M' " + base);
  MustRun("mkdir " + File("guests"));
  std::vector<std::string> targets;
  for (int i = 0; i < 70; ++i) targets.push_back(File(fmt::format("guests/{}.qcow2", i)));
  CloneOptions options;
  options.open.format = "raw";
  auto made = Clone(base, targets, options, Gate({.allow_external = true}), nullptr);
  ASSERT_TRUE(made.has_value()) << made.error().text();
  for (int i : {0, 33, 69}) {
    MustRun("qemu-img check -q " + targets[i] + " && qemu-io -c 'read -P 1 1M 1M' " + targets[i]);
  }
  EXPECT_NE(MustRun("qemu-img info " + targets[0]).find("../base.raw"), std::string::npos);
}

TEST_F(OverlayTest, FullClonesDoWithoutTheBase) {
  const std::string base = File("base.qcow2");
  MustRun("qemu-img create -q -f qcow2 " + base + " 8M && qemu-io -c 'write -P 1 1M 1M' " + base);
  MustRun("qemu-img snapshot -c s " + base);
  CloneOptions options;
  options.full = true;
  std::vector<std::string> warnings;
  auto made = Clone(base, {File("a.qcow2"), File("b.qcow2")}, options, gate_, &warnings);
  ASSERT_TRUE(made.has_value()) << made.error().text();
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("1 snapshot is left out"), std::string::npos) << warnings[0];
  for (std::string name : {"a", "b"}) {
    MustRun("qemu-img compare " + base + " " + File(name + ".qcow2"));
  }
  MustRun("rm " + base + " && qemu-img check -q " + File("a.qcow2"));
}

}  // namespace
}  // namespace platter
