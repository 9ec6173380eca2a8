#include "io/ring.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "io/file_store.h"
#include "io/memory_store.h"
#include "io/window_store.h"

namespace platter {
namespace {

constexpr size_t kSize = 4 * kMiB;

class RingTest : public testing::Test {
 protected:
  RingTest() {
    std::string pattern = testing::TempDir() + "ring_XXXXXX";
    dir_ = mkdtemp(pattern.data());
    model_.resize(kSize);
    std::minstd_rand random(1);
    for (auto& byte : model_) byte = std::byte(random());
    file_ = *FileStore::Create(dir_ + "/a", {.lock = false});
    EXPECT_TRUE(file_->Write(0, model_).has_value());
  }
  ~RingTest() override { std::filesystem::remove_all(dir_); }

  // `count` requests of two pieces each at random places, with memory of their own.
  struct Batch {
    std::vector<std::vector<std::byte>> bytes;
    std::vector<std::array<iovec, 2>> lists;
    std::vector<StoreRequest> requests;
  };
  static std::unique_ptr<Batch> MakeBatch(Store& store, size_t count, unsigned seed) {
    auto batch = std::make_unique<Batch>();
    std::minstd_rand random(seed);
    for (size_t i = 0; i < count; ++i) {
      batch->bytes.emplace_back(2 + random() % 9000, std::byte(seed + i));
      auto& bytes = batch->bytes.back();
      batch->lists.push_back({iovec{bytes.data(), 1}, iovec{bytes.data() + 1, bytes.size() - 1}});
    }
    for (size_t i = 0; i < count; ++i) {
      // Slots of their own, so that what a batch of writes leaves does not depend on the order.
      uint64_t at = (kSize / count) * i + random() % 100;
      batch->requests.push_back({&store, at, batch->lists[i]});
    }
    return batch;
  }
  bool ReadsRight(size_t count, unsigned seed) {
    auto batch = MakeBatch(*file_, count, seed);
    Result<> read = RingRead(batch->requests);
    EXPECT_TRUE(read.has_value()) << read.error().text();
    for (size_t i = 0; i < count; ++i) {
      auto from = model_.begin() + static_cast<ptrdiff_t>(batch->requests[i].at);
      if (!std::equal(batch->bytes[i].begin(), batch->bytes[i].end(), from)) return false;
    }
    return true;
  }

  std::string dir_;
  std::vector<std::byte> model_;
  std::unique_ptr<FileStore> file_;
};

TEST_F(RingTest, ReadsManyAndFew) {
  std::cout << "io_uring is " << (RingAvailable() ? "" : "not ") << "available\n";
  for (size_t count : {1, 2, 3, 63, 64, 65, 300}) EXPECT_TRUE(ReadsRight(count, count)) << count;
  EXPECT_TRUE(RingRead({}).has_value());
}

TEST_F(RingTest, WritesAreWhole) {
  auto batch = MakeBatch(*file_, 100, 5);
  ASSERT_TRUE(RingWrite(batch->requests).has_value());
  for (size_t i = 0; i < 100; ++i) {
    std::ranges::copy(batch->bytes[i],
                      model_.begin() + static_cast<ptrdiff_t>(batch->requests[i].at));
  }
  std::vector<std::byte> all(kSize);
  ASSERT_TRUE(file_->Read(0, all).has_value());
  EXPECT_TRUE(all == model_);
}

TEST_F(RingTest, PastTheEndFailsAsReadDoes) {
  auto batch = MakeBatch(*file_, 10, 5);
  batch->requests[7].at = kSize - 1;
  Result<> read = RingRead(batch->requests);
  ASSERT_FALSE(read.has_value());
  EXPECT_EQ(read.error().code(), Code::kCorrupt);
  EXPECT_EQ(read.error().text(), file_->Read(kSize - 1, batch->requests[7].iov).error().text());
}

TEST_F(RingTest, WritesPastTheEndGrowTheFile) {
  auto batch = MakeBatch(*file_, 10, 5);
  batch->requests[7].at = kSize + 4096;
  ASSERT_TRUE(RingWrite(batch->requests).has_value());
  EXPECT_EQ(*file_->Size(), kSize + 4096 + batch->bytes[7].size());
}

TEST_F(RingTest, AWindowIsNotLeft) {
  auto window = *WindowStore::Open(*FileStore::Open(dir_ + "/a", {.writable = true, .lock = false}),
                                   Range{4096, 100'000});
  auto batch = MakeBatch(*window, 10, 5);
  for (size_t i = 0; i < 10; ++i) batch->requests[i].at = i * 9000;
  ASSERT_TRUE(RingRead(batch->requests).has_value());
  EXPECT_EQ(batch->bytes[3][0], model_[4096 + 27'000]);
  batch->requests[4].at = 99'999;
  EXPECT_EQ(RingRead(batch->requests).error().code(), Code::kCorrupt);
  EXPECT_EQ(RingWrite(batch->requests).error().code(), Code::kNoSpace);
}

TEST_F(RingTest, StoresMix) {
  MemoryStore memory{ConstBytes(model_)};
  auto batch = MakeBatch(*file_, 40, 6);
  for (size_t i = 0; i < 40; i += 3) batch->requests[i].store = &memory;
  ASSERT_TRUE(RingRead(batch->requests).has_value());
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(batch->bytes[i].back(), model_[batch->requests[i].at + batch->bytes[i].size() - 1]);
  }
}

TEST_F(RingTest, ReadOnlyStoresRefuseWrites) {
  auto store = *FileStore::Open(dir_ + "/a", {.lock = false});
  auto batch = MakeBatch(*store, 10, 5);
  EXPECT_EQ(RingWrite(batch->requests).error().code(), Code::kReadOnly);
}

TEST_F(RingTest, EachThreadHasItsOwn) {
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (unsigned i = 0; i < 20; ++i) EXPECT_TRUE(ReadsRight(100, 100 * t + i));
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST_F(RingTest, AChildProcessMakesItsOwn) {
  ASSERT_TRUE(ReadsRight(100, 1));
  pid_t child = fork();
  if (child == 0) _exit(ReadsRight(100, 2) ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(ReadsRight(100, 3));
}

// In a sandbox that forbids io_uring_setup.
TEST_F(RingTest, WithoutARingTheStoresDoIt) {
  pid_t child = fork();
  if (child == 0) {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog filter{.len = std::size(program), .filter = program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) _exit(2);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) _exit(3);
    bool right = false, available = true;
    std::thread([&] {
      right = ReadsRight(100, 2);
      available = RingAvailable();
    }).join();
    _exit(right && !available ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace platter
