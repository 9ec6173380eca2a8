// What an outbox holds comes out in order, and memory that has been sent serves again.
#include "nbd/outbox.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace platter::nbd {
namespace {

// Everything, in steps of at most `step` bytes.
std::string Drain(Outbox& out, size_t step) {
  std::string text;
  while (!out.empty()) {
    std::array<iovec, 1> part;
    EXPECT_EQ(out.Front(part), 1u);
    const size_t size = std::min(step, part[0].iov_len);
    text.append(static_cast<const char*>(part[0].iov_base), size);
    EXPECT_GT(size, 0u);
    out.Consume(size);
  }
  return text;
}

void Append(Outbox& out, std::string_view text) { out.Append(AsBytes(text)); }

TEST(OutboxTest, KeepsTheOrderOfSmallAndLarge) {
  for (size_t step : {1, 2, 3, 1000}) {
    Outbox out(128);
    Append(out, "ab");
    Append(out, std::string(80, 'c'));
    Append(out, "d");
    Append(out, "");
    Append(out, std::string(30, 'e'));
    Append(out, std::string(64, 'f'));
    EXPECT_EQ(out.size(), 177u);
    EXPECT_EQ(Drain(out, step),
              "ab" + std::string(80, 'c') + "d" + std::string(30, 'e') + std::string(64, 'f'));
    EXPECT_TRUE(out.empty());
  }
}

TEST(OutboxTest, FrontGivesAsMuchAsThereIsRoomFor) {
  Outbox out(128);
  Append(out, "a");
  Append(out, "b");
  Append(out, std::string(80, 'c'));
  Append(out, "d");
  std::array<iovec, 8> parts;
  ASSERT_EQ(out.Front(parts), 3u);
  EXPECT_EQ(parts[0].iov_len, 2u);
  EXPECT_EQ(parts[1].iov_len, 80u);
  EXPECT_EQ(out.Front(std::span(parts).first(2)), 2u);
  out.Consume(3);
  ASSERT_EQ(out.Front(parts), 2u);
  EXPECT_EQ(parts[0].iov_len, 79u);
}

TEST(OutboxTest, FilesKeepTheirPlace) {
  Outbox out(128);
  out.AcceptFiles(true);
  Append(out, "ab");
  out.AppendFile({7, 1000, 50});
  Append(out, "c");
  Append(out, "d");
  out.AppendFile({8, 0, 3});
  EXPECT_EQ(out.size(), 57u);
  std::array<iovec, 8> parts;
  EXPECT_EQ(out.FrontFile(), nullptr);
  ASSERT_EQ(out.Front(parts), 1u);
  EXPECT_EQ(parts[0].iov_len, 2u);
  out.Consume(2);
  EXPECT_EQ(out.Front(parts), 0u);
  ASSERT_NE(out.FrontFile(), nullptr);
  EXPECT_EQ(out.FrontFile()->fd, 7);
  out.Consume(10);
  EXPECT_EQ(out.FrontFile()->offset, 1010u);
  EXPECT_EQ(out.FrontFile()->length, 40u);
  out.Consume(41);
  EXPECT_EQ(out.FrontFile(), nullptr);
  ASSERT_EQ(out.Front(parts), 1u);
  EXPECT_EQ(*static_cast<const char*>(parts[0].iov_base), 'd');
  out.TakeBack(2);
  out.Consume(1);
  EXPECT_EQ(out.FrontFile()->fd, 8);
  EXPECT_EQ(out.FrontFile()->length, 1u);
  out.Consume(1);
  EXPECT_TRUE(out.empty());
}

TEST(OutboxTest, TakesBackWhatWasAppendedLast) {
  Outbox out(128);
  Append(out, "abc");
  const uint64_t before = out.size();
  Append(out, "d");
  Append(out, std::string(80, 'e'));
  Append(out, "f");
  out.TakeBack(before + 3);
  EXPECT_EQ(out.size(), 6u);
  out.TakeBack(before);
  Append(out, "g");
  EXPECT_EQ(Drain(out, 1000), "abcg");
}

TEST(OutboxTest, TakesOverAnother) {
  Outbox out(128), other;
  Append(out, "a");
  Append(other, "b");
  Append(other, std::string(20'000, 'c'));
  Append(other, "d");
  out.Take(std::move(other));
  Append(out, "e");
  EXPECT_TRUE(other.empty());
  Append(other, "f");
  EXPECT_EQ(Drain(other, 1000), "f");
  EXPECT_EQ(Drain(out, 1000), "ab" + std::string(20'000, 'c') + "de");
}

TEST(OutboxTest, SmallPiecesUseTheSameMemoryAgain) {
  Outbox out(128);
  const std::byte* first = out.Append(20).data();
  out.Consume(20);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(out.Append(20).data(), first);
    EXPECT_EQ(out.Append(20).data(), first + 20);
    out.Consume(40);
  }
  // Not while some of it waits to be sent.
  out.Append(20);
  EXPECT_EQ(out.Append(30).data(), first + 20);
  EXPECT_NE(out.Append(30).data(), first + 50);
}

#ifndef PLATTER_ASAN  // which wants memory to end
TEST(MemoryTest, WhatWasFreedLastIsUsedNext) {
  std::byte *first = nullptr, *second = nullptr;
  {
    Memory one(300'000), two(300'000);
    first = one.data();
    second = two.data();
  }
  // Destroyed in the opposite order, so that `first` was freed last.
  Memory again(400'000), other(270'000), third(300'000);
  EXPECT_EQ(again.data(), first);
  EXPECT_EQ(other.data(), second);
  EXPECT_NE(third.data(), first);
  EXPECT_EQ(again.size(), 400'000u);
}
#endif

TEST(MemoryTest, MovesAndHoldsNothingAfterwards) {
  Memory one(10);
  std::byte* data = one.data();
  Memory two(std::move(one));
  EXPECT_EQ(two.data(), data);
  EXPECT_EQ(one.size(), 0u);
  EXPECT_EQ(one.data(), nullptr);
  one = std::move(two);
  EXPECT_EQ(one.data(), data);
  EXPECT_EQ(Memory(0).data(), nullptr);
}

}  // namespace
}  // namespace platter::nbd
