#include "io/file_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <random>
#include <string_view>
#include <thread>
#include <vector>

#include "base/sync.h"

namespace platter {
namespace {

class FileStoreTest : public testing::Test {
 protected:
  FileStoreTest() {
    std::string pattern = testing::TempDir() + "file_store_XXXXXX";
    dir_ = mkdtemp(pattern.data());
  }
  ~FileStoreTest() override { std::filesystem::remove_all(dir_); }

  std::string Path(const std::string& name) const { return dir_ + "/" + name; }
  std::unique_ptr<FileStore> Make(const std::string& name, FileStoreOptions options = {}) {
    auto store = FileStore::Create(Path(name), options);
    EXPECT_TRUE(store.has_value()) << store.error().text();
    return std::move(*store);
  }
  static std::vector<std::byte> Pattern(size_t size, unsigned seed = 1) {
    std::minstd_rand random(seed);
    std::vector<std::byte> bytes(size);
    for (auto& byte : bytes) byte = std::byte(1 + random() % 255);
    return bytes;
  }
  static std::vector<std::byte> All(Store& store) {
    std::vector<std::byte> bytes(*store.Size());
    Result<> read = store.Read(0, bytes);
    EXPECT_TRUE(read.has_value()) << read.error().text();
    return bytes;
  }

  std::string dir_;
};

TEST_F(FileStoreTest, CreateIsExclusive) {
  auto store = Make("a.img");
  EXPECT_TRUE(store->writable());
  EXPECT_EQ(*store->Size(), 0u);
  auto again = FileStore::Create(Path("a.img"));
  ASSERT_FALSE(again.has_value());
  EXPECT_EQ(again.error().code(), Code::kRefused);
  EXPECT_EQ(again.error().text(), "'" + Path("a.img") + "' exists already");
}

TEST_F(FileStoreTest, MissingFileIsNamed) {
  auto store = FileStore::Open(Path("no\nsuch"), {});
  ASSERT_FALSE(store.has_value());
  EXPECT_EQ(store.error().errno_value(), ENOENT);
  EXPECT_EQ(store.error().text(),
            "cannot open '" + dir_ + "/no\\x0asuch': No such file or directory");
}

TEST_F(FileStoreTest, ReadsAndWritesVectors) {
  auto store = Make("a.img");
  auto bytes = Pattern(10'000);
  // More pieces than one system call takes.
  std::vector<iovec> from;
  for (size_t i = 0; i < bytes.size(); i += 4) from.push_back({bytes.data() + i, 4});
  ASSERT_GT(from.size(), size_t{IOV_MAX});
  ASSERT_TRUE(store->Write(1000, from).has_value());
  EXPECT_EQ(*store->Size(), 11'000u);
  std::vector<std::byte> back(bytes.size());
  std::vector<iovec> into;
  for (size_t i = 0; i < back.size(); i += 5) into.push_back({back.data() + i, 5});
  ASSERT_TRUE(store->Read(1000, into).has_value());
  EXPECT_EQ(back, bytes);
  auto start = All(*store);
  EXPECT_TRUE(IsZero(ConstBytes(start).first(1000)));
}

TEST_F(FileStoreTest, ReadPastTheEndIsCorrupt) {
  auto store = Make("a.img");
  ASSERT_TRUE(store->Resize(100).has_value());
  std::array<std::byte, 10> into;
  Result<> read = store->Read(95, into);
  EXPECT_EQ(read.error().code(), Code::kCorrupt);
  EXPECT_EQ(read.error().text(),
            "'" + Path("a.img") + "': 10 bytes at 0x5f reach past the end of the file (size 0x64)");
  EXPECT_EQ(store->Read(~uint64_t{0} - 2, into).error().code(), Code::kCorrupt);
  EXPECT_EQ(store->Write(~uint64_t{0} - 2, into).error().code(), Code::kOutOfRange);
}

TEST_F(FileStoreTest, ReadOnlyRefusesChanges) {
  Make("a.img");
  auto store = *FileStore::Open(Path("a.img"), {});
  std::array<std::byte, 1> byte{};
  EXPECT_EQ(store->Write(0, byte).error().code(), Code::kReadOnly);
  EXPECT_EQ(store->Zero(Range{0, 1}, true).error().code(), Code::kReadOnly);
  EXPECT_EQ(store->Resize(1).error().code(), Code::kReadOnly);
  EXPECT_EQ(store->Allocate(Range{0, 1}).error().code(), Code::kReadOnly);
  EXPECT_TRUE(store->Sync().has_value());
}

TEST_F(FileStoreTest, ZeroPunchesAndGrows) {
  auto store = Make("a.img");
  auto bytes = Pattern(1 * kMiB);
  ASSERT_TRUE(store->Write(0, bytes).has_value());
  ASSERT_TRUE(store->Zero(Range{100'001, 500'000}, true).has_value());
  std::fill_n(bytes.begin() + 100'001, 500'000, std::byte{0});
  EXPECT_EQ(All(*store), bytes);
  if (store->caps().punch) {
    auto run = *store->FindRun(200'000);
    EXPECT_FALSE(run.data);
  }
  ASSERT_TRUE(store->Zero(Range{1 * kMiB - 5, 10'000'005}, true).has_value());
  EXPECT_EQ(*store->Size(), 1 * kMiB + 10'000'000);
  EXPECT_LE(std::filesystem::file_size(Path("a.img")), 1 * kMiB + 10'000'000);
  struct stat status;
  ASSERT_EQ(stat(Path("a.img").c_str(), &status), 0);
  EXPECT_LT(status.st_blocks * 512, 2'000'000) << "the grown part is a hole";
}

TEST_F(FileStoreTest, ZeroThatKeepsItsSpace) {
  auto store = Make("a.img");
  auto bytes = Pattern(200'000);
  ASSERT_TRUE(store->Write(0, bytes).has_value());
  ASSERT_TRUE(store->Zero(Range{3, 150'000}, false).has_value());
  ASSERT_TRUE(store->Zero(Range{199'999, 100'001}, false).has_value());
  std::fill_n(bytes.begin() + 3, 150'000, std::byte{0});
  bytes[199'999] = std::byte{0};
  bytes.resize(300'000);
  EXPECT_EQ(All(*store), bytes);
  struct stat status;
  ASSERT_EQ(stat(Path("a.img").c_str(), &status), 0);
  EXPECT_GE(status.st_blocks * 512, 299'008) << "everything is allocated";
}

TEST_F(FileStoreTest, FindRunTellsDataFromHoles) {
  auto store = Make("a.img");
  ASSERT_TRUE(store->Resize(10 * kMiB).has_value());
  ASSERT_TRUE(store->Write(4 * kMiB, Pattern(64 * kKiB)).has_value());
  auto hole = *store->FindRun(1);
  EXPECT_FALSE(hole.data);
  EXPECT_EQ(hole.length, 4 * kMiB - 1);
  auto data = *store->FindRun(4 * kMiB + 10);
  EXPECT_TRUE(data.data);
  EXPECT_EQ(data.length, 64 * kKiB - 10);
  auto tail = *store->FindRun(5 * kMiB);
  EXPECT_FALSE(tail.data);
  EXPECT_EQ(tail.length, 5 * kMiB);
  EXPECT_EQ(store->FindRun(10 * kMiB).error().code(), Code::kOutOfRange);
}

TEST_F(FileStoreTest, ResizeAndAllocate) {
  auto store = Make("a.img");
  ASSERT_TRUE(store->Write(0, Pattern(1000)).has_value());
  ASSERT_TRUE(store->Resize(10).has_value());
  ASSERT_TRUE(store->Resize(1000).has_value());
  EXPECT_TRUE(IsZero(ConstBytes(All(*store)).subspan(10)));
  Result<> allocated = store->Allocate(Range{0, 1 * kMiB});
  ASSERT_TRUE(allocated.has_value()) << allocated.error().text();
  EXPECT_EQ(*store->Size(), 1 * kMiB);
  EXPECT_EQ(All(*store)[5], Pattern(1000)[5]);
  EXPECT_EQ(store->Resize(~uint64_t{0}).error().code(), Code::kOutOfRange);
}

TEST_F(FileStoreTest, TryReadServesCachedBytes) {
  auto store = Make("a.img");
  auto bytes = Pattern(4096);
  ASSERT_TRUE(store->Write(0, bytes).has_value());
  std::vector<std::byte> back(8192);
  iovec one{back.data(), back.size()};
  size_t got = store->TryRead(0, std::span(&one, 1));
  EXPECT_EQ(got, 4096u) << "just written, so in the page cache; a prefix at the end";
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), back.begin()));
  EXPECT_EQ(store->TryRead(4096, std::span(&one, 1)), 0u);
}

// Growing by Zero while others append must never cut what they wrote: another write past the end
// comes between the look at the length and the growing.
TEST_F(FileStoreTest, GrowingDoesNotCutOthersOff) {
  auto store = Make("a.img");
  struct Other final : sched::Hook {
    explicit Other(FileStore& its_store) : store(its_store) {}
    void Yield(const char* where) override {
      if (std::string_view(where) != "store grow") return;
      sched::hook = nullptr;
      written = store.Write(8192, Pattern(4096)).has_value();
    }
    FileStore& store;
    bool written = false;
  } other(*store);
  sched::hook = &other;
  Result<> zeroed = store->Zero(Range{0, 4096}, true);
  sched::hook = nullptr;
  ASSERT_TRUE(zeroed.has_value());
  ASSERT_TRUE(other.written) << "this test needs a file system that punches holes";
  EXPECT_EQ(*store->Size(), 12'288u);
  EXPECT_EQ(All(*store)[8192], Pattern(1)[0]);
}

// O_DIRECT. These need a file system that has it, which every one on a disk does.
class DirectFileTest : public FileStoreTest {
 protected:
  static constexpr FileStoreOptions kDirect{.writable = true, .direct = true};
};

TEST_F(DirectFileTest, LengthIsExactWhateverIsWritten) {
  auto store = Make("a.img", kDirect);
  EXPECT_GE(store->caps().align, 512u);
  EXPECT_EQ(store->fd(), -1);
  std::vector<std::byte> model;
  std::minstd_rand random(3);
  for (int i = 1; i < 150; ++i) {
    size_t at = random() % 100'000, length = 1 + random() % (i % 10 == 0 ? 1'500'000 : 9000);
    if (i % 3 == 0) at = RoundDown(at, 4096), length = RoundUp(length, 4096);
    model.resize(std::max(model.size(), at + length));
    if (i % 7 == 0) {
      ASSERT_TRUE(store->Zero(Range{at, length}, i % 2 == 0).has_value());
      std::fill_n(model.begin() + at, length, std::byte{0});
    } else {
      auto bytes = Pattern(length, i);
      Result<> written = store->Write(at, bytes);
      ASSERT_TRUE(written.has_value()) << written.error().text();
      std::ranges::copy(bytes, model.begin() + at);
    }
    if (i % 20 == 0) {
      model.resize(model.size() / 2 + 1);
      ASSERT_TRUE(store->Resize(model.size()).has_value());
    }
    ASSERT_EQ(*store->Size(), model.size());
    ASSERT_TRUE(All(*store) == model) << i;
  }
  std::array<std::byte, 10> past;
  EXPECT_EQ(store->Read(model.size() - 9, past).error().code(), Code::kCorrupt);
  ASSERT_TRUE(store->Sync().has_value());
  store.reset();
  auto cached = *FileStore::Open(Path("a.img"), {});
  EXPECT_TRUE(All(*cached) == model);
}

TEST_F(DirectFileTest, PastTheEndIsAnErrorForAlignedReads) {
  auto store = Make("a.img", kDirect);
  ASSERT_TRUE(store->Write(0, Pattern(5000)).has_value());
  Buffer buffer(8192);
  EXPECT_EQ(store->Read(0, buffer.bytes()).error().code(), Code::kCorrupt);
  EXPECT_TRUE(store->Read(0, buffer.bytes().first(4096)).has_value());
}

// Each thread owns every fourth byte run of shared sectors: read-modify-write must lose none.
TEST_F(DirectFileTest, NeighboursInOneSectorAreNotLost) {
  constexpr int kThreads = 4, kRuns = 200, kRun = 37;
  auto store = Make("a.img", kDirect);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::byte> bytes(kRun, std::byte(t + 1));
      for (int i = 0; i < kRuns; ++i) {
        ASSERT_TRUE(store->Write((i * kThreads + t) * kRun, bytes).has_value());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  auto all = All(*store);
  ASSERT_EQ(all.size(), size_t{kThreads * kRuns * kRun});
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(all[i], std::byte(1 + i / kRun % kThreads)) << "byte " << i;
  }
}

}  // namespace
}  // namespace platter
