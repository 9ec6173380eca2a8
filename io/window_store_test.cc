// WindowStore and ConcatStore: the two that only move offsets.
#include "io/window_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "io/concat_store.h"
#include "io/memory_store.h"

namespace platter {
namespace {

// Byte i of the store is i + first, modulo 251.
std::unique_ptr<MemoryStore> Counting(size_t size, size_t first = 0, bool writable = true) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = std::byte((i + first) % 251);
  return std::make_unique<MemoryStore>(bytes,
                                       MemoryStore::Options{.name = "m", .writable = writable});
}

std::vector<std::byte> ReadBack(Store& store, uint64_t at, size_t size) {
  std::vector<std::byte> bytes(size);
  Result<> read = store.Read(at, bytes);
  EXPECT_TRUE(read.has_value()) << read.error().text();
  return bytes;
}

// A list of two pieces that covers `bytes`.
std::array<iovec, 2> TwoPieces(std::vector<std::byte>& bytes, size_t first) {
  return {iovec{bytes.data(), first}, iovec{bytes.data() + first, bytes.size() - first}};
}

TEST(WindowStore, ShowsItsPartAndNoMore) {
  auto inner = Counting(1000);
  MemoryStore& memory = *inner;
  auto window = *WindowStore::Open(std::move(inner), Range{100, 200});
  EXPECT_EQ(*window->Size(), 200u);
  EXPECT_EQ(ReadBack(*window, 10, 50)[0], std::byte{110});
  std::vector<std::byte> bytes(20, std::byte{255});
  ASSERT_TRUE(window->Write(180, bytes).has_value());
  EXPECT_EQ(ReadBack(memory, 299, 1)[0], std::byte{255});
  EXPECT_EQ(ReadBack(memory, 300, 1)[0], std::byte{300 % 251});
  EXPECT_EQ(window->Write(181, bytes).error().code(), Code::kNoSpace);
  EXPECT_EQ(window->Read(181, bytes).error().code(), Code::kCorrupt);
  EXPECT_EQ(window->Read(~uint64_t{0} - 50, bytes).error().code(), Code::kCorrupt);
  EXPECT_EQ(window->Zero(Range{190, 11}, true).error().code(), Code::kNoSpace);
  EXPECT_EQ(window->Allocate(Range{200, 1}).error().code(), Code::kNoSpace);
  ASSERT_TRUE(window->Zero(Range{0, 200}, false).has_value());
  EXPECT_EQ(ReadBack(memory, 99, 1)[0], std::byte{99});
  EXPECT_EQ(ReadBack(memory, 100, 1)[0], std::byte{0});
  EXPECT_EQ(window->Resize(201).error().code(), Code::kUnsupported);
  EXPECT_TRUE(window->Resize(200).has_value());
  EXPECT_EQ(window->fd(), -1);
  EXPECT_EQ(window->fd_offset(), 100u);
  EXPECT_EQ(window->FindRun(150)->length, 50u);
  EXPECT_EQ(window->FindRun(200).error().code(), Code::kOutOfRange);
  EXPECT_TRUE(window->caps().block_device);
}

TEST(WindowStore, TryReadStopsAtItsEnd) {
  auto window = *WindowStore::Open(Counting(1000), Range{100, 200});
  std::vector<std::byte> bytes(50);
  auto list = TwoPieces(bytes, 7);
  EXPECT_EQ(window->TryRead(0, list), 50u);
  EXPECT_EQ(bytes[49], std::byte{149});
  EXPECT_EQ(window->TryRead(190, list), 10u);
  EXPECT_EQ(bytes[9], std::byte{299 % 251});
  EXPECT_EQ(window->TryRead(200, list), 0u);
}

TEST(WindowStore, MustLieInside) {
  EXPECT_TRUE(WindowStore::Open(Counting(1000), Range{0, 1000}).has_value());
  EXPECT_TRUE(WindowStore::Open(Counting(1000), Range{1000, 0}).has_value());
  auto window = WindowStore::Open(Counting(1000), Range{500, 501});
  ASSERT_FALSE(window.has_value());
  EXPECT_EQ(window.error().code(), Code::kOutOfRange);
  EXPECT_EQ(window.error().text(),
            "'m': a window of 501 bytes at 500 is not inside its 1000 bytes");
  EXPECT_FALSE(WindowStore::Open(Counting(1000), Range{~uint64_t{0}, 2}).has_value());
}

std::unique_ptr<ConcatStore> ThreeParts() {
  std::vector<std::unique_ptr<Store>> parts;
  parts.push_back(Counting(100, 0));
  parts.push_back(Counting(0));
  parts.push_back(Counting(50, 100));
  parts.push_back(Counting(30, 150));
  return *ConcatStore::Open(std::move(parts));
}

TEST(ConcatStore, ReadsAndWritesAcrossParts) {
  auto whole = ThreeParts();
  EXPECT_EQ(*whole->Size(), 180u);
  EXPECT_EQ(whole->name(), "m and 3 more");
  for (size_t at = 0; at < 180; ++at) {
    auto bytes = ReadBack(*whole, at, 180 - at);
    for (size_t i = 0; i < bytes.size(); ++i) ASSERT_EQ(bytes[i], std::byte(at + i));
  }
  std::vector<std::byte> bytes(70, std::byte{255});
  auto list = TwoPieces(bytes, 11);
  ASSERT_TRUE(whole->Write(90, std::span<const iovec>(list)).has_value());
  auto all = ReadBack(*whole, 0, 180);
  EXPECT_EQ(all[89], std::byte{89});
  EXPECT_EQ(std::ranges::count(all, std::byte{255}), 70);
  EXPECT_EQ(all[160], std::byte{160});
  ASSERT_TRUE(whole->Zero(Range{95, 60}, true).has_value());
  EXPECT_TRUE(IsZero(ConstBytes(ReadBack(*whole, 95, 60))));
  EXPECT_EQ(ReadBack(*whole, 155, 1)[0], std::byte{255});
  EXPECT_TRUE(whole->Sync().has_value());
}

TEST(ConcatStore, EndsAreErrors) {
  auto whole = ThreeParts();
  std::vector<std::byte> bytes(10);
  EXPECT_EQ(whole->Read(171, bytes).error().code(), Code::kCorrupt);
  EXPECT_EQ(whole->Write(171, bytes).error().code(), Code::kNoSpace);
  EXPECT_EQ(whole->Zero(Range{180, 1}, true).error().code(), Code::kNoSpace);
  EXPECT_EQ(whole->Resize(0).error().code(), Code::kUnsupported);
  EXPECT_EQ(whole->FindRun(180).error().code(), Code::kOutOfRange);
  EXPECT_TRUE(whole->Read(180, Bytes()).has_value());
}

TEST(ConcatStore, RunsAndTryReadGoPartByPart) {
  auto whole = ThreeParts();
  EXPECT_EQ(whole->FindRun(0)->length, 100u);
  EXPECT_EQ(whole->FindRun(100)->length, 50u);
  std::vector<std::byte> bytes(180);
  auto list = TwoPieces(bytes, 120);
  EXPECT_EQ(whole->TryRead(0, list), 180u);
  EXPECT_EQ(bytes[179], std::byte{179});
  EXPECT_EQ(whole->TryRead(100, list), 80u);
  EXPECT_EQ(whole->TryRead(180, list), 0u);
}

TEST(ConcatStore, OneReadOnlyPartMakesItReadOnly) {
  std::vector<std::unique_ptr<Store>> parts;
  parts.push_back(Counting(10));
  parts.push_back(Counting(10, 0, false));
  EXPECT_FALSE((*ConcatStore::Open(std::move(parts)))->writable());
}

}  // namespace
}  // namespace platter
