#include "io/large_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "io/fd.h"
#include "io/file_store.h"

namespace platter {
namespace {

constexpr uint64_t kLarge = LargePages::kSize;

// An empty file that is gone when it is closed.
Fd FileIn(const std::string& directory) {
  std::string path = directory + "/large_pages_XXXXXX";
  Fd fd(mkstemp(path.data()));
  EXPECT_TRUE(fd) << path;
  unlink(path.c_str());
  return fd;
}

std::vector<std::byte> Noise(size_t size, unsigned seed) {
  std::minstd_rand random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = std::byte(1 + random() % 255);
  return bytes;
}

std::vector<std::byte> All(int fd) {
  struct stat status;
  EXPECT_EQ(fstat(fd, &status), 0);
  std::vector<std::byte> bytes(static_cast<size_t>(status.st_size));
  EXPECT_EQ(pread(fd, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return bytes;
}

uint64_t Allocated(int fd) {
  struct stat status;
  EXPECT_EQ(fstat(fd, &status), 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

TEST(LargePages, TakesMemoryForWholePagesInsideTheFileOnly) {
  Fd fd = FileIn("/dev/shm");
  ASSERT_TRUE(LivesInMemory(fd.get()));
  ASSERT_EQ(ftruncate(fd.get(), 5 * kLarge), 0);
  LargePages pages(fd.get());
  pages.Make({1, 2 * kLarge - 2});
  pages.Make({5 * kLarge, kLarge});
  EXPECT_EQ(Allocated(fd.get()), 0u);
  pages.Make({kLarge - 1, 2 * kLarge + 2});
  // A kernel that does not know how leaves the one small page that it was given.
  EXPECT_TRUE(Allocated(fd.get()) == 2 * kLarge || Allocated(fd.get()) <= 2 * 4096);
  EXPECT_TRUE(All(fd.get()) == std::vector<std::byte>(5 * kLarge));
}

TEST(LargePages, KeepsWhatIsThere) {
  Fd fd = FileIn("/dev/shm");
  std::vector<std::byte> expected(8 * kLarge);
  ASSERT_EQ(ftruncate(fd.get(), 8 * kLarge), 0);
  for (uint64_t at : {uint64_t{0}, kLarge + 5, 3 * kLarge - 1, 6 * kLarge + 70'000}) {
    std::vector<std::byte> noise = Noise(9000, static_cast<unsigned>(at));
    ASSERT_EQ(pwrite(fd.get(), noise.data(), noise.size(), static_cast<off_t>(at)), 9000);
    std::ranges::copy(noise, expected.begin() + static_cast<ptrdiff_t>(at));
  }
  LargePages pages(fd.get());
  for (uint64_t at = 0; at < 8 * kLarge; at += kLarge) pages.Make({at, kLarge});
  EXPECT_TRUE(All(fd.get()) == expected);
  pages.Make({0, 8 * kLarge});
  EXPECT_TRUE(All(fd.get()) == expected);
}

TEST(LargePages, LosesNoWriteThatHappensMeanwhile) {
  Fd fd = FileIn("/dev/shm");
  constexpr uint64_t kSize = 8 * kLarge;
  std::vector<std::byte> noise = Noise(kSize, 1);
  for (int round = 0; round < 10; ++round) {
    ASSERT_EQ(ftruncate(fd.get(), 0), 0);
    ASSERT_EQ(ftruncate(fd.get(), kSize), 0);
    LargePages pages(fd.get());
    {
      std::jthread maker([&] {
        for (uint64_t at = 0; at < kSize; at += kLarge) pages.Make({at, kLarge});
      });
      for (uint64_t at = 0; at < kSize; at += 64 * kKiB) {
        EXPECT_EQ(pwrite(fd.get(), noise.data() + at, 64 * kKiB, static_cast<off_t>(at)),
                  static_cast<ssize_t>(64 * kKiB));
      }
    }
    ASSERT_TRUE(All(fd.get()) == noise) << "round " << round;
  }
}

TEST(LargePages, DoesNothingElsewhere) {
  Fd fd = FileIn(testing::TempDir());
  if (LivesInMemory(fd.get())) fd = FileIn("/var/tmp");
  ASSERT_EQ(ftruncate(fd.get(), 4 * kLarge), 0);
  LargePages(fd.get()).Make({0, 4 * kLarge});
  EXPECT_EQ(Allocated(fd.get()), 0u);
}

// Large writes make large pages by themselves; holes that are punched into them are holes.
TEST(LargePages, ServeAFileStore) {
  FileStoreOptions options;
  options.writable = true;
  auto store = FileStore::FromFd(FileIn("/dev/shm"), "memory", options);
  ASSERT_TRUE(store) << store.error().text();
  std::vector<std::byte> expected = Noise(3 * kLarge + 12'345, 2);
  ASSERT_TRUE((*store)->Resize(expected.size()));
  (*store)->Expect({0, kLarge});
  ASSERT_TRUE((*store)->Write(100, ConstBytes(expected).subspan(100)));
  ASSERT_TRUE((*store)->Write(0, ConstBytes(expected).first(100)));
  Range hole{kLarge + 64 * kKiB, 128 * kKiB};
  ASSERT_TRUE((*store)->Zero(hole, /*may_unmap=*/true));
  std::fill_n(expected.begin() + static_cast<ptrdiff_t>(hole.offset), hole.length, std::byte{0});
  std::vector<std::byte> bytes(expected.size());
  ASSERT_TRUE((*store)->Read(0, bytes));
  EXPECT_TRUE(bytes == expected);
  ASSERT_TRUE((*store)->Resize(kLarge + 1));
  EXPECT_EQ(*(*store)->Size(), kLarge + 1);
  ASSERT_TRUE((*store)->Resize(2 * kLarge));
  std::fill(expected.begin() + static_cast<ptrdiff_t>(kLarge + 1), expected.end(), std::byte{0});
  ASSERT_TRUE((*store)->Read(0, Bytes(bytes).first(2 * kLarge)));
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.begin() + 2 * kLarge, expected.begin()));
}

}  // namespace
}  // namespace platter
