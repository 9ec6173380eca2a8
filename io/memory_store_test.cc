#include "io/memory_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <vector>

namespace platter {
namespace {

std::vector<std::byte> Pattern(size_t size, unsigned seed = 1) {
  std::minstd_rand random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = std::byte(1 + random() % 255);
  return bytes;
}

std::vector<std::byte> ReadBack(Store& store, uint64_t at, size_t size) {
  std::vector<std::byte> bytes(size);
  Result<> read = store.Read(at, bytes);
  EXPECT_TRUE(read.has_value()) << read.error().text();
  return bytes;
}

TEST(MemoryStore, ReadsWhatWasWritten) {
  MemoryStore store;
  auto bytes = Pattern(200'000);
  ASSERT_TRUE(store.Write(70'001, bytes).has_value());
  EXPECT_EQ(*store.Size(), 270'001u);
  EXPECT_EQ(ReadBack(store, 70'001, bytes.size()), bytes);
  EXPECT_TRUE(IsZero(ReadBack(store, 0, 70'001)));
}

TEST(MemoryStore, ReadPastTheEndIsAnError) {
  MemoryStore store(100);
  std::array<std::byte, 10> into;
  EXPECT_TRUE(store.Read(90, into).has_value());
  EXPECT_EQ(store.Read(91, into).error().code(), Code::kCorrupt);
  EXPECT_EQ(store.Read(~uint64_t{0} - 3, into).error().code(), Code::kCorrupt);
  iovec one{into.data(), into.size()};
  EXPECT_EQ(store.TryRead(95, std::span(&one, 1)), 5u);
  EXPECT_EQ(store.TryRead(100, std::span(&one, 1)), 0u);
}

TEST(MemoryStore, HugeAndSparseIsCheap) {
  MemoryStore store(64 * kTiB);
  ASSERT_TRUE(store.Write(63 * kTiB, Pattern(10)).has_value());
  ASSERT_TRUE(store.Zero(Range{0, 63 * kTiB}, true).has_value());
  EXPECT_LE(store.allocated(), 64 * kKiB);
  EXPECT_EQ(store.FindRun(0)->length, 63 * kTiB);
  EXPECT_FALSE(store.FindRun(0)->data);
  EXPECT_TRUE(store.FindRun(63 * kTiB)->data);
  EXPECT_EQ(store.FindRun(63 * kTiB)->length, 64 * kKiB);
  EXPECT_FALSE(store.FindRun(64 * kTiB - 1)->data);
  EXPECT_EQ(store.FindRun(64 * kTiB).error().code(), Code::kOutOfRange);
}

TEST(MemoryStore, ZeroAndResize) {
  MemoryStore store;
  auto bytes = Pattern(300'000);
  ASSERT_TRUE(store.Write(0, bytes).has_value());
  ASSERT_TRUE(store.Zero(Range{100, 200'000}, true).has_value());
  std::fill(bytes.begin() + 100, bytes.begin() + 200'100, std::byte{0});
  EXPECT_EQ(store.Contents(), bytes);
  EXPECT_FALSE(store.FindRun(65'536)->data);
  ASSERT_TRUE(store.Zero(Range{250'000, 100'000}, false).has_value()) << "grows";
  EXPECT_EQ(*store.Size(), 350'000u);
  EXPECT_TRUE(store.FindRun(250'000)->data);
  ASSERT_TRUE(store.Resize(210'000).has_value());
  ASSERT_TRUE(store.Resize(300'000).has_value());
  EXPECT_TRUE(IsZero(ReadBack(store, 210'000, 90'000))) << "cut bytes come back as zeros";
  EXPECT_EQ(ReadBack(store, 200'100, 9'900),
            std::vector(bytes.begin() + 200'100, bytes.begin() + 210'000));
}

TEST(MemoryStore, ClonesAreIndependent) {
  MemoryStore store;
  auto bytes = Pattern(100'000);
  ASSERT_TRUE(store.Write(0, bytes).has_value());
  auto copy = store.Clone();
  ASSERT_TRUE(store.Write(5, Pattern(10, 2)).has_value());
  EXPECT_EQ(copy->Contents(), bytes);
  ASSERT_TRUE(copy->Zero(Range{0, 100'000}, false).has_value());
  EXPECT_EQ(ReadBack(store, 5, 10), Pattern(10, 2));
}

TEST(MemoryStore, OptionsAreKept) {
  MemoryStore fixed(4096, {.name = "disk", .fixed_size = true});
  auto bytes = Pattern(100);
  EXPECT_EQ(fixed.Write(4000, bytes).error().code(), Code::kNoSpace);
  EXPECT_EQ(fixed.Resize(10).error().code(), Code::kUnsupported);
  EXPECT_TRUE(fixed.caps().block_device);
  MemoryStore read_only(bytes, {.name = "x", .writable = false});
  EXPECT_EQ(read_only.Write(0, bytes).error().code(), Code::kReadOnly);
  EXPECT_EQ(read_only.Zero(Range{0, 1}, true).error().code(), Code::kReadOnly);
}

// Against a flat array, with ragged offsets.
TEST(MemoryStore, AgreesWithAFlatArray) {
  constexpr size_t kSize = 512 * 1024;
  MemoryStore store(kSize);
  std::vector<std::byte> model(kSize);
  std::minstd_rand random(7);
  for (int i = 0; i < 500; ++i) {
    size_t at = random() % kSize, length = random() % std::min<size_t>(kSize - at, 150'000);
    if (random() % 2) {
      auto bytes = Pattern(length, i);
      ASSERT_TRUE(store.Write(at, bytes).has_value());
      std::ranges::copy(bytes, model.begin() + at);
    } else {
      ASSERT_TRUE(store.Zero(Range{at, length}, random() % 2).has_value());
      std::fill_n(model.begin() + at, length, std::byte{0});
    }
    for (uint64_t run = random() % kSize; run < kSize;) {
      Store::Run found = *store.FindRun(run);
      ASSERT_GE(found.length, 1u);
      ASSERT_TRUE(found.data || IsZero(ConstBytes(model).subspan(run, found.length)));
      run += found.length;
    }
  }
  EXPECT_EQ(store.Contents(), model);
}

}  // namespace
}  // namespace platter
