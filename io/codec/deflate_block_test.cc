#include "io/codec/deflate_block.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <numeric>

#include "io/codec/codec_test_util.h"

namespace platter::internal {
namespace {

using testing::Buffer;
using testing::RandomBytes;

// Kraft's sum in units of 2^-15: a complete prefix code has 2^15.
uint64_t KraftSum(std::span<const uint8_t> lengths) {
  uint64_t sum = 0;
  for (uint8_t length : lengths) {
    if (length > 0) sum += uint64_t{1} << (15 - length);
  }
  return sum;
}

uint64_t Cost(std::span<const uint32_t> counts, std::span<const uint8_t> lengths) {
  return std::inner_product(counts.begin(), counts.end(), lengths.begin(), uint64_t{0});
}

// The cost of an optimal code without a limit, by adding up merged weights.
uint64_t OptimalCost(std::span<const uint32_t> counts) {
  std::vector<uint64_t> heap;
  for (uint32_t count : counts) {
    if (count > 0) heap.push_back(count);
  }
  uint64_t cost = 0;
  auto pop = [&] {
    std::ranges::pop_heap(heap, std::greater<>());
    uint64_t value = heap.back();
    heap.pop_back();
    return value;
  };
  std::ranges::make_heap(heap, std::greater<>());
  while (heap.size() > 1) {
    uint64_t first = pop(), merged = first + pop();
    cost += merged;
    heap.push_back(merged);
    std::ranges::push_heap(heap, std::greater<>());
  }
  return cost;
}

TEST(HuffmanTest, LengthsAreOptimalWhereTheLimitAllows) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 500; ++round) {
    std::vector<uint32_t> counts(2 + random() % 287);
    for (uint32_t& count : counts) count = random() % 3 ? static_cast<uint32_t>(random() % 60) : 0;
    counts[0] = counts[1] = 5;
    std::vector<uint8_t> lengths(counts.size());
    MakeHuffmanLengths(counts, 15, lengths);
    ASSERT_EQ(KraftSum(lengths), 1u << 15);
    ASSERT_EQ(Cost(counts, lengths), OptimalCost(counts));
    for (size_t i = 0; i < counts.size(); ++i) ASSERT_EQ(counts[i] > 0, lengths[i] > 0);
  }
}

TEST(HuffmanTest, TheLimitHolds) {
  // Fibonacci numbers make the deepest trees.
  std::vector<uint32_t> counts = {1, 1};
  while (counts.size() < 30) counts.push_back(counts.end()[-1] + counts.end()[-2]);
  for (uint32_t limit : {5, 7, 15}) {
    std::vector<uint32_t> some(counts.begin(), counts.begin() + (limit == 5 ? 25 : 19));
    std::vector<uint8_t> lengths(some.size());
    MakeHuffmanLengths(some, limit, lengths);
    EXPECT_EQ(KraftSum(lengths), 1u << 15);
    EXPECT_LE(*std::ranges::max_element(lengths), limit);
    EXPECT_GE(*std::ranges::min_element(lengths), 1);
    EXPECT_TRUE(std::ranges::is_sorted(lengths, std::greater<>()));
  }
}

TEST(HuffmanTest, FewSymbolsStillMakeACompleteCode) {
  for (size_t used : {size_t{0}, size_t{1}, size_t{2}}) {
    for (size_t at : {size_t{0}, size_t{1}, size_t{7}}) {
      std::vector<uint32_t> counts(10);
      if (used > 0) counts[at] = 9;
      if (used > 1) counts[9] = 1;
      std::vector<uint8_t> lengths(10);
      MakeHuffmanLengths(counts, 15, lengths);
      EXPECT_EQ(KraftSum(lengths), 1u << 15);
      EXPECT_TRUE(used == 0 || lengths[at] == 1);
    }
  }
}

TEST(HuffmanTest, CanonicalCodesOfTheSpecification) {
  // RFC 1951, section 3.2.2: lengths (3, 3, 3, 3, 3, 2, 4, 4); codes there are not reversed.
  std::vector<uint8_t> lengths = {3, 3, 3, 3, 3, 2, 4, 4};
  std::vector<HuffmanCode> codes(8);
  MakeHuffmanCodes(lengths, codes);
  std::vector<uint16_t> expect = {0b010, 0b110, 0b001, 0b101, 0b011, 0b00, 0b0111, 0b1111};
  for (size_t i = 0; i < codes.size(); ++i) EXPECT_EQ(codes[i].bits, expect[i]) << i;
}

bool InflatesTo(ConstBytes stream, const Buffer& expect) {
  z_stream z = {};
  CHECK(inflateInit2(&z, -15) == Z_OK);
  Buffer out(expect.size() + 1);
  z.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(stream.data()));
  z.avail_in = static_cast<uInt>(stream.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  int result = inflate(&z, Z_FINISH);
  bool good = result == Z_STREAM_END && z.avail_in == 0 && z.total_out == expect.size();
  inflateEnd(&z);
  out.pop_back();
  return good && out == expect;
}

// Tokens at random, and what they say.
struct Tokens {
  std::vector<Token> tokens;
  Buffer plain;
  void Literal(uint8_t byte) {
    tokens.push_back({byte, 0});
    plain.push_back(std::byte{byte});
  }
  void Match(size_t length, size_t distance) {
    tokens.push_back({static_cast<uint16_t>(kMatch + length), static_cast<uint16_t>(distance)});
    for (size_t i = 0; i < length; ++i) plain.push_back(plain[plain.size() - distance]);
  }
};

TEST(DeflateBlockTest, EveryLengthAndManyDistances) {
  Tokens all;
  std::mt19937_64 random(1);
  for (int i = 0; i < 32768; ++i) all.Literal(static_cast<uint8_t>(random()));
  for (size_t length = kMinMatch; length <= kMaxMatch; ++length) all.Match(length, length * 100);
  for (size_t distance = 1; distance <= 32768; distance += distance < 600 ? 1 : 61) {
    all.Match(3 + distance % 250, distance);
  }
  all.Match(kMaxMatch, 32768);
  DeflateBlockWriter writer;
  writer.Begin(1 << 20);
  ASSERT_TRUE(writer.Write(all.tokens, all.plain, true));
  EXPECT_TRUE(InflatesTo(writer.Finish(), all.plain));
}

TEST(DeflateBlockTest, ChoosesTheSmallestType) {
  DeflateBlockWriter writer;
  auto type_of = [&](const Tokens& tokens) {
    writer.Begin(1 << 20);
    EXPECT_TRUE(writer.Write(tokens.tokens, tokens.plain, true));
    ConstBytes stream = writer.Finish();
    EXPECT_TRUE(InflatesTo(stream, tokens.plain));
    return std::to_integer<int>(stream[0]) >> 1 & 3;
  };
  Tokens tiny, noise, text;
  for (char c : std::string_view("deflate")) tiny.Literal(static_cast<uint8_t>(c));
  for (std::byte byte : RandomBytes(200000, 1)) noise.Literal(static_cast<uint8_t>(byte));
  for (int i = 0; i < 5000; ++i) text.Literal(static_cast<uint8_t>("etaoin shrdlu"[i * i % 13]));
  EXPECT_EQ(type_of(tiny), 1);
  EXPECT_EQ(type_of(noise), 0);
  EXPECT_EQ(type_of(text), 2);
  EXPECT_EQ(type_of({}), 1);  // nothing at all
}

TEST(DeflateBlockTest, ManyBlocksAndALimit) {
  std::mt19937_64 random(4);
  Buffer plain;
  std::vector<Tokens> blocks(20);
  for (Tokens& block : blocks) {
    // Of every kind: noise is stored, a little is fixed.
    size_t count = random() % 3 ? random() % 3000 : random() % 20;
    unsigned mask = random() % 2 ? 0xff : 0x0f;
    for (size_t i = 0; i < count; ++i) {
      if (block.plain.size() > 10 && mask == 0x0f && random() % 2) {
        block.Match(3 + random() % 256, 1 + random() % 10);
      } else {
        block.Literal(static_cast<uint8_t>(random() & mask));
      }
    }
    plain.insert(plain.end(), block.plain.begin(), block.plain.end());
  }
  auto write = [&](DeflateBlockWriter& writer, size_t limit) {
    writer.Begin(limit);
    for (const Tokens& block : blocks) {
      if (!writer.Write(block.tokens, block.plain, &block == &blocks.back())) return false;
    }
    return true;
  };
  DeflateBlockWriter writer;
  ASSERT_TRUE(write(writer, 1 << 20));
  size_t size = writer.Finish().size();
  EXPECT_TRUE(InflatesTo(writer.Finish(), plain));
  // Estimates of stored blocks are a few bytes on the safe side, no more.
  EXPECT_FALSE(write(writer, size - 1));
  EXPECT_TRUE(write(writer, size + 8));
  EXPECT_TRUE(InflatesTo(writer.Finish(), plain));
}

}  // namespace
}  // namespace platter::internal
