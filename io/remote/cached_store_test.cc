#include "io/remote/cached_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <thread>

#include "tests/interop/qemu.h"

namespace platter {
namespace {

// Byte `at` of the file, cheap to compare.
std::byte ByteAt(uint64_t at) { return static_cast<std::byte>(at * 2654435761u >> 24 ^ at >> 13); }

// A server in memory that counts what it is asked for.
struct FakeServer {
  uint64_t size = 0;
  std::string version = "1", url = "fake://server?key=1";
  std::atomic<uint64_t> requests{0}, bytes{0};
  std::atomic<int> failures{0};  // of the next requests
};

class FakeSource final : public RemoteSource {
 public:
  explicit FakeSource(FakeServer& server)
      : server_(server), url_(server.url), version_(server.version) {}
  const std::string& name() const override { return name_; }
  const std::string& url() const override { return url_; }
  uint64_t size() const override { return server_.size; }
  const std::string& version() const override { return version_; }
  uint64_t worthwhile() const override { return 256 * kKiB; }
  Result<> Fetch(uint64_t at, Bytes into) override {
    ++server_.requests;
    server_.bytes += into.size();
    EXPECT_TRUE(FitsIn(at, into.size(), server_.size));
    if (stop_) return Fail(Code::kRefused, "stopped");
    if (server_.failures > 0 && server_.failures-- > 0) return Fail(Code::kIo, "no luck");
    for (size_t i = 0; i < into.size(); ++i) into[i] = ByteAt(at + i);
    return {};
  }
  void Stop() override { stop_ = true; }

 private:
  FakeServer& server_;
  const std::string name_ = "fake://server";
  const std::string url_, version_;
  std::atomic<bool> stop_{false};
};

std::unique_ptr<Store> OpenStore(FakeServer& server, const CacheOptions& options = {}) {
  auto store = CachedStore::Open(std::make_unique<FakeSource>(server), options);
  EXPECT_TRUE(store) << store.error().text();
  return std::move(*store);
}

void ExpectRead(Store& store, uint64_t at, size_t length) {
  std::vector<std::byte> bytes(length);
  auto read = store.Read(at, Bytes(bytes));
  ASSERT_TRUE(read) << read.error().text();
  for (size_t i = 0; i < length; ++i) {
    ASSERT_EQ(bytes[i], ByteAt(at + i)) << at << " + " << i;
  }
}

TEST(CachedStoreTest, ReadsAreRight) {
  FakeServer server{.size = 20 * kMiB + 12345};
  auto store = OpenStore(server, {.memory = 3 * kMiB, .ahead = 2 * kMiB});
  std::mt19937_64 random(1);
  for (int i = 0; i < 300; ++i) {
    uint64_t length = random() % (i % 10 == 0 ? 3 * kMiB : 10000) + 1;
    uint64_t at = random() % (server.size - length + 1);
    ASSERT_NO_FATAL_FAILURE(ExpectRead(*store, at, length));
  }
  ExpectRead(*store, server.size - 1, 1);
}

TEST(CachedStoreTest, PastTheEndIsAnError) {
  FakeServer server{.size = 1000};
  auto store = OpenStore(server);
  std::byte two[2];
  EXPECT_FALSE(store->Read(999, Bytes(two)));
  EXPECT_FALSE(store->FindRun(1000));
  EXPECT_EQ(store->Read(UINT64_MAX, Bytes(two)).error().code(), Code::kCorrupt);
  EXPECT_EQ(*store->Size(), 1000u);
  EXPECT_EQ(store->Write(0, Bytes(two)).error().code(), Code::kReadOnly);
}

TEST(CachedStoreTest, ASizeThatNoFileHasIsRefused) {
  FakeServer server{.size = UINT64_MAX};
  auto store = CachedStore::Open(std::make_unique<FakeSource>(server), {});
  ASSERT_FALSE(store);
  EXPECT_EQ(store.error().code(), Code::kUnsupported);
}

TEST(CachedStoreTest, JumpingReadsFetchLittle) {
  FakeServer server{.size = kGiB};
  auto store = OpenStore(server);
  for (uint64_t i = 0; i < 20; ++i) ExpectRead(*store, (i * 7 % 20) * 50 * kMiB, 4096);
  EXPECT_EQ(server.bytes, 20 * 256 * kKiB);
}

TEST(CachedStoreTest, SequentialReadsFetchEachByteOnce) {
  FakeServer server{.size = 64 * kMiB};
  {
    auto store = OpenStore(server, {.memory = 32 * kMiB});
    for (uint64_t at = 0; at < server.size; at += 64 * kKiB) {
      ASSERT_NO_FATAL_FAILURE(ExpectRead(*store, at, 64 * kKiB));
    }
  }
  EXPECT_EQ(server.bytes, server.size);
  EXPECT_LT(server.requests, 80u);
}

TEST(CachedStoreTest, ThreadsShareWhatIsFetched) {
  FakeServer server{.size = 32 * kMiB};
  {
    auto store = OpenStore(server);
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < 4; ++thread) {
      threads.emplace_back([&, thread] {
        for (uint64_t at = thread * 4096; at < server.size; at += 256 * kKiB) {
          ExpectRead(*store, at, 4096);
          std::byte cached[512];
          iovec one{cached, sizeof cached};
          if (store->TryRead(at, {&one, 1}) > 0) {
            ASSERT_EQ(cached[0], ByteAt(at));
          }
        }
      });
    }
  }
  EXPECT_EQ(server.bytes, server.size);
}

TEST(CachedStoreTest, AFailedFetchIsTriedAgainByTheNextRead) {
  FakeServer server{.size = kMiB, .failures = 1};
  auto store = OpenStore(server);
  std::byte one[1];
  auto failed = store->Read(5, Bytes(one));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().text(), "no luck");
  ExpectRead(*store, 5, 1);
}

class DiskCacheTest : public testing::Test {
 protected:
  std::string Folder() { return folder_.File("cache"); }
  std::string OnlyFile() {
    for (const auto& entry : std::filesystem::directory_iterator(Folder())) return entry.path();
    return "";
  }
  testing_support::TempFolder folder_;
};

TEST_F(DiskCacheTest, NothingIsFetchedTwice) {
  FakeServer server{.size = 3 * kMiB + 7};
  for (int round = 0; round < 2; ++round) {
    auto store = OpenStore(server, {.folder = Folder()});
    ExpectRead(*store, 0, server.size);
  }
  EXPECT_EQ(server.bytes, server.size);
}

TEST_F(DiskCacheTest, AnotherVersionIsFetchedAnew) {
  FakeServer server{.size = kMiB};
  ExpectRead(*OpenStore(server, {.folder = Folder()}), 0, kMiB);
  server.version = "2";
  ExpectRead(*OpenStore(server, {.folder = Folder()}), 0, kMiB);
  EXPECT_EQ(server.bytes, 2 * kMiB);
}

// Messages leave out a query, but it is a part of what the file is called.
TEST_F(DiskCacheTest, FilesOfTheSameNameInMessagesAreNotMixedUp) {
  FakeServer server{.size = kMiB};
  ExpectRead(*OpenStore(server, {.folder = Folder()}), 0, kMiB);
  server.url = "fake://server?key=2";
  ExpectRead(*OpenStore(server, {.folder = Folder()}), 0, kMiB);
  EXPECT_EQ(server.bytes, 2 * kMiB);
}

TEST_F(DiskCacheTest, WhatHasNoVersionIsNotKept) {
  FakeServer server{.size = kMiB, .version = ""};
  ExpectRead(*OpenStore(server, {.folder = Folder()}), 0, kMiB);
  EXPECT_FALSE(std::filesystem::exists(Folder()));
}

TEST_F(DiskCacheTest, DamageIsNoticedAndFetchedAnew) {
  FakeServer server{.size = kMiB};
  ExpectRead(*OpenStore(server, {.folder = Folder()}), 0, kMiB);
  {
    std::fstream file(OnlyFile(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(8192 + 300 * 1024);
    file.put('?');
  }
  ExpectRead(*OpenStore(server, {.folder = Folder()}), 0, kMiB);
  EXPECT_EQ(server.bytes, kMiB + DiskCache::kBlock);
}

TEST_F(DiskCacheTest, AFolderThatOthersMayWriteToIsRefused) {
  std::filesystem::create_directory(Folder());
  chmod(Folder().c_str(), 0777);
  FakeServer server{.size = kMiB};
  auto store = CachedStore::Open(std::make_unique<FakeSource>(server), {.folder = Folder()});
  ASSERT_FALSE(store);
  EXPECT_EQ(store.error().code(), Code::kRefused);
}

}  // namespace
}  // namespace platter
