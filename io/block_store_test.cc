#include "io/block_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/loop.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "io/open_file.h"

namespace platter {
namespace {

constexpr uint64_t kSize = 8 * kMiB;

// A loop device over a file of kSize bytes, which goes when this does, however the test ends.
class LoopDevice {
 public:
  LoopDevice(const std::string& file, uint32_t sector) {
    Fd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    if (!control) {
      error_ = std::string("cannot open /dev/loop-control (") + std::strerror(errno) +
               "): this test makes a loop device, run it as root with the module loop loaded";
      return;
    }
    Fd backing(open(file.c_str(), O_RDWR | O_CLOEXEC));
    for (int attempt = 0; attempt < 20; ++attempt) {  // others take free ones, too
      int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
      path_ = "/dev/loop" + std::to_string(number);
      device_ = Fd(open(path_.c_str(), O_RDWR | O_CLOEXEC));
      loop_config config{};
      config.fd = static_cast<uint32_t>(backing.get());
      config.block_size = sector;
      config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
      if (device_ && ioctl(device_.get(), LOOP_CONFIGURE, &config) == 0) return;
    }
    error_ = "cannot set up a loop device: " + std::string(std::strerror(errno));
  }
  const std::string& path() const { return path_; }
  const std::string& error() const { return error_; }

 private:
  std::string path_, error_;
  Fd device_;
};

class BlockStoreTest : public testing::TestWithParam<std::tuple<uint32_t, bool>> {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "block_store_XXXXXX";
    dir_ = mkdtemp(pattern.data());
    file_ = dir_ + "/disk";
    model_.resize(kSize);
    std::minstd_rand random(1);
    for (auto& byte : model_) byte = std::byte(1 + random() % 255);
    auto store = *FileStore::Create(file_);
    ASSERT_TRUE(store->Write(0, model_).has_value());
    store.reset();
    loop_ = std::make_unique<LoopDevice>(file_, std::get<0>(GetParam()));
    ASSERT_EQ(loop_->error(), "");
  }
  void TearDown() override {
    loop_.reset();
    std::filesystem::remove_all(dir_);
  }
  std::unique_ptr<Store> Open(bool writable = true) {
    auto store =
        OpenFileStore(loop_->path(), {.writable = writable, .direct = std::get<1>(GetParam())});
    EXPECT_TRUE(store.has_value()) << store.error().text();
    return std::move(*store);
  }
  void ExpectModel(Store& store) {
    std::vector<std::byte> all(kSize);
    Result<> read = store.Read(0, all);
    ASSERT_TRUE(read.has_value()) << read.error().text();
    ASSERT_TRUE(all == model_);
  }

  std::string dir_, file_;
  std::vector<std::byte> model_;
  std::unique_ptr<LoopDevice> loop_;
};

INSTANTIATE_TEST_SUITE_P(Devices, BlockStoreTest,
                         testing::Combine(testing::Values(512u, 4096u), testing::Bool()),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) ? "direct" : "cached");
                         });

TEST_P(BlockStoreTest, KnowsWhatItIs) {
  auto store = Open(false);
  auto [sector, direct] = GetParam();
  EXPECT_EQ(*store->Size(), kSize);
  EXPECT_TRUE(store->caps().block_device);
  EXPECT_EQ(store->caps().align, direct ? sector : 1);
  EXPECT_EQ(dynamic_cast<BlockStore&>(*store).sector(), sector);
  EXPECT_EQ(store->fd() >= 0, !direct);
  EXPECT_TRUE(store->FindRun(5)->data);
  EXPECT_EQ(store->FindRun(5)->length, kSize - 5);
  EXPECT_EQ(store->FindRun(kSize).error().code(), Code::kOutOfRange);
  ExpectModel(*store);
}

TEST_P(BlockStoreTest, TheSizeIsFixed) {
  auto store = Open();
  std::vector<std::byte> bytes(4096, std::byte{1});
  EXPECT_EQ(store->Write(kSize, bytes).error().code(), Code::kNoSpace);
  EXPECT_EQ(store->Zero(Range{kSize - 100, 200}, true).error().code(), Code::kNoSpace);
  EXPECT_EQ(store->Resize(kSize + 1).error().code(), Code::kUnsupported);
  EXPECT_TRUE(store->Resize(kSize).has_value());
  EXPECT_EQ(store->Allocate(Range{0, 1}).error().code(), Code::kUnsupported);
  Result<> read = store->Read(kSize - 10, bytes);
  EXPECT_EQ(read.error().code(), Code::kCorrupt);
  EXPECT_NE(read.error().text().find("(size 0x800000)"), std::string::npos) << read.error().text();
  ExpectModel(*store);
}

TEST_P(BlockStoreTest, ReadOnlyRefusesChanges) {
  auto store = Open(false);
  std::vector<std::byte> bytes(512);
  EXPECT_EQ(store->Write(0, bytes).error().code(), Code::kReadOnly);
  EXPECT_EQ(store->Zero(Range{0, 512}, false).error().code(), Code::kReadOnly);
}

TEST_P(BlockStoreTest, RaggedWritesAndZerosAgreeWithTheModel) {
  auto store = Open();
  std::minstd_rand random(3);
  for (int i = 0; i < 200; ++i) {
    uint64_t at = random() % kSize, length = 1 + random() % std::min<uint64_t>(kSize - at, 200'000);
    if (i % 3 == 0) at = RoundDown(at, 4096), length = RoundUp(length, 4096);
    length = std::min(length, kSize - at);
    if (i % 2 == 0) {
      std::vector<std::byte> bytes(length, std::byte(i));
      Result<> written = store->Write(at, bytes);
      ASSERT_TRUE(written.has_value()) << written.error().text();
      std::fill_n(model_.begin() + static_cast<ptrdiff_t>(at), length, std::byte(i));
    } else {
      Result<> zeroed = store->Zero(Range{at, length}, i % 4 == 1);
      ASSERT_TRUE(zeroed.has_value()) << zeroed.error().text();
      std::fill_n(model_.begin() + static_cast<ptrdiff_t>(at), length, std::byte{0});
    }
  }
  ASSERT_TRUE(store->Sync().has_value());
  ExpectModel(*store);
  store.reset();
  auto again = Open(false);
  ExpectModel(*again);
}

TEST_P(BlockStoreTest, TheLockIsQemus) {
  auto reader = Open(false);
  auto writer = OpenFileStore(loop_->path(), {.writable = true});
  ASSERT_FALSE(writer.has_value());
  EXPECT_EQ(writer.error().code(), Code::kRefused);
}

TEST_P(BlockStoreTest, AClaimedDeviceIsNotWritten) {
  Fd claim(open(loop_->path().c_str(), O_RDWR | O_EXCL | O_CLOEXEC));
  ASSERT_TRUE(claim);
  auto writer = OpenFileStore(loop_->path(), {.writable = true});
  ASSERT_FALSE(writer.has_value());
  EXPECT_EQ(writer.error().code(), Code::kRefused);
  EXPECT_EQ(writer.error().text(),
            "'" + loop_->path() + "' is in use by the system (mounted, or part of another device)");
  EXPECT_TRUE(OpenFileStore(loop_->path(), {}).has_value());
}

}  // namespace
}  // namespace platter
