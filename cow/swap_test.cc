// Files that are swapped between the moment the gate looks at them and the moment they are opened,
// by somebody who controls the image's folder.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/sync.h"
#include "cow/create.h"
#include "cow/disk.h"
#include "io/engine/engine.h"

namespace platter {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// Runs `act` when a file has been looked at for the `nth` time and is about to be opened.
class AtOpen final : public sched::Hook {
 public:
  AtOpen(int nth, std::function<void()> act) : left_(nth), act_(std::move(act)) {
    sched::hook = this;
  }
  ~AtOpen() override { sched::hook = nullptr; }
  void Yield(const char* where) override {
    if (std::string_view(where) != "open file" || --left_ != 0) return;
    sched::hook = nullptr;
    act_();
  }
  bool acted() const { return left_ <= 0; }

 private:
  int left_;
  std::function<void()> act_;
};

// vm/top.qcow2 on vm/below/base.img; outside/base.img is none of its business.
class SwapTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) /
            testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    for (const char* folder : {"vm/below", "outside"}) fs::create_directories(root_ / folder);
    root_ = fs::canonical(root_);
    std::ofstream(root_ / "vm/below/base.img") << std::string(65536, 'b');
    std::ofstream(root_ / "outside/base.img") << std::string(65536, 's');
    NewImageOptions options{.format = "qcow2", .size_from_parent = true};
    options.create.parent = Reference{Reference::kParent, "below/base.img", "raw"};
    auto image = NewImage::Create(Top(), options, Gate(GatePolicy()), nullptr);
    ASSERT_TRUE(image.has_value()) << image.error().text();
    ASSERT_TRUE((*image)->Commit().has_value());
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string Top() const { return (root_ / "vm/top.qcow2").string(); }

  // What the disk's first byte is, or the error; `swap` happens as the `nth` file is opened.
  std::string Open(int nth, std::function<void()> swap) {
    AtOpen at_open(nth, std::move(swap));
    auto disk = Disk::Open(Top(), {}, Gate(GatePolicy()), nullptr);
    EXPECT_TRUE(at_open.acted());
    if (!disk) {
      EXPECT_EQ(disk.error().code(), Code::kRefused);
      return disk.error().text();
    }
    std::byte first{};
    EXPECT_TRUE(Read(**disk, 0, Bytes(&first, 1)).has_value());
    return std::string(1, static_cast<char>(first));
  }

  fs::path root_;
};

TEST_F(SwapTest, NobodySwaps) {
  EXPECT_EQ(Open(2, [] {}), "b");
}

TEST_F(SwapTest, AParentThatBecomesALink) {
  EXPECT_THAT(Open(2,
                   [&] {
                     fs::rename(root_ / "vm/below/base.img", root_ / "vm/old");
                     fs::create_symlink(root_ / "outside/base.img", root_ / "vm/below/base.img");
                   }),
              HasSubstr("has become a symbolic link"));
}

TEST_F(SwapTest, AFolderThatBecomesALink) {
  EXPECT_THAT(Open(2,
                   [&] {
                     fs::rename(root_ / "vm/below", root_ / "vm/old");
                     fs::create_symlink(root_ / "outside", root_ / "vm/below");
                   }),
              HasSubstr("has become a symbolic link"));
}

// As early as while the image itself is opened: what the gate then says is right at that moment.
TEST_F(SwapTest, AFolderThatIsALinkBeforeTheGateLooks) {
  EXPECT_THAT(Open(1,
                   [&] {
                     fs::rename(root_ / "vm/below", root_ / "vm/old");
                     fs::create_symlink(root_ / "outside", root_ / "vm/below");
                   }),
              HasSubstr("is outside the image's directory"));
}

// The chain's files were told apart by what they were.
TEST_F(SwapTest, AParentThatBecomesAnotherFile) {
  EXPECT_THAT(Open(2,
                   [&] {
                     std::ofstream(root_ / "vm/new") << "other";
                     fs::rename(root_ / "vm/new", root_ / "vm/below/base.img");
                   }),
              HasSubstr("has become another file"));
}

// A file that the user names may be a link; it may not become another file, and "parts" neither.
TEST_F(SwapTest, TheUsersOwnFiles) {
  fs::create_symlink("top.qcow2", root_ / "vm/link.qcow2");
  auto disk = Disk::Open((root_ / "vm/link.qcow2").string(), {}, Gate(GatePolicy()), nullptr);
  EXPECT_TRUE(disk.has_value()) << disk.error().text();
  disk = Fail(Code::kIo, "closed");
  EXPECT_THAT(Open(1,
                   [&] {
                     fs::copy_file(Top(), root_ / "vm/copy");
                     fs::rename(root_ / "vm/copy", Top());
                   }),
              HasSubstr("has become another file"));
}

}  // namespace
}  // namespace platter
