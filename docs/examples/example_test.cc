#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/interop/qemu.h"

namespace {

namespace fs = std::filesystem;

using platter::testing_support::MustRun;
using platter::testing_support::Outcome;
using platter::testing_support::Shell;

class Examples : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / "examples";
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::string disk(100000, '\0');
    disk.replace(0, 30, "thirty bytes in the first one.");
    disk.replace(90000, 4, "tail");
    std::ofstream(Path("base.img")) << disk;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  static Outcome Example(const std::string& name, const std::string& arguments) {
    return Shell("docs/examples/" + name + " " + arguments);
  }

  fs::path folder_;
};

TEST_F(Examples, CopyARangeOfAnyImage) {
  Outcome raw = Example("copy_range", Path("base.img") + " 7 5");
  EXPECT_EQ(raw.exit_code, 0);
  EXPECT_TRUE(raw.output.ends_with("bytes")) << raw.output;

  MustRun("qemu-img convert -f raw -O qcow2 " + Path("base.img") + " " + Path("a.qcow2"));
  EXPECT_EQ(Example("copy_range", Path("a.qcow2") + " 90000 4").output, "tail");
  EXPECT_EQ(Example("copy_range", Path("a.qcow2") + " 90000 900000").exit_code, 1);
  EXPECT_EQ(Example("copy_range", Path("none") + " 0 1").exit_code, 1);
  EXPECT_EQ(Example("copy_range", "").exit_code, 2);
}

TEST_F(Examples, CreateAnOverlay) {
  Outcome created = Example("create_overlay", "base.img raw " + Path("over.qcow2"));
  ASSERT_EQ(created.exit_code, 0) << created.output;
  EXPECT_EQ(Example("copy_range", Path("over.qcow2") + " 0 30").output,
            "written to the overlayrst one.");
  EXPECT_EQ(Example("copy_range", Path("over.qcow2") + " 90000 4").output, "tail");
  MustRun("qemu-img check -q " + Path("over.qcow2"));
  EXPECT_EQ(
      Shell("qemu-io -r -c 'read -P 119 0 1' " + Path("over.qcow2") + " | grep -q verification")
          .exit_code,
      1);
  EXPECT_EQ(Example("create_overlay", "base.img raw " + Path("over.qcow2")).exit_code, 1)
      << "it exists";
  EXPECT_EQ(Example("create_overlay", "none raw " + Path("o2.qcow2")).exit_code, 1);
  EXPECT_FALSE(fs::exists(Path("o2.qcow2")));
}

}  // namespace
