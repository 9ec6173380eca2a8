#define ZSTD_STATIC_LINKING_ONLY  // ZSTD_MAGICNUMBER's neighbours
#include <gtest/gtest.h>
#include <zstd.h>

#include <algorithm>

#include "base/endian.h"
#include "io/codec/codec.h"
#include "io/codec/codec_test_util.h"

namespace platter {
namespace {

using testing::Buffer;
using testing::GuardedBuffer;
using testing::MixedBytes;
using testing::PeriodicBytes;
using testing::RandomBytes;
using testing::TextBytes;

struct Frame {
  int level = 3;
  bool size_in_header = true;
  bool checksum = false;
  int window_log = 0;
};

// A frame as a foreign writer makes it; without a size it is written piece by piece.
Buffer MakeFrame(ConstBytes from, const Frame& how) {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, how.level);
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, how.checksum);
  if (how.window_log) ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, how.window_log);
  Buffer out(ZSTD_compressBound(from.size()) + 64);
  ZSTD_outBuffer to{out.data(), out.size(), 0};
  if (!how.size_in_header) {
    ZSTD_inBuffer first{from.data(), from.size(), 0};
    CHECK(!ZSTD_isError(ZSTD_compressStream2(context, &to, &first, ZSTD_e_continue)));
    CHECK(first.pos == first.size);
    ZSTD_inBuffer none{nullptr, 0, 0};
    CHECK(ZSTD_compressStream2(context, &to, &none, ZSTD_e_end) == 0);
  } else {
    ZSTD_inBuffer all{from.data(), from.size(), 0};
    CHECK(ZSTD_compressStream2(context, &to, &all, ZSTD_e_end) == 0);
  }
  ZSTD_freeCCtx(context);
  out.resize(to.pos);
  return out;
}

Buffer Skippable(uint32_t claims, size_t has) {
  Buffer out(8 + has);
  StoreAt(Bytes(out), 0, le32(ZSTD_MAGIC_SKIPPABLE_START + 3));
  StoreAt(Bytes(out), 4, le32(claims));
  return out;
}

Buffer operator+(Buffer a, const Buffer& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Decompresses `stream` into a unit of expect.size() bytes and checks content and consumption.
void ExpectUnit(const Buffer& stream, const Buffer& expect, size_t used) {
  GuardedBuffer from(stream), into(expect.size());
  auto consumed = Decompress(Codec::kZstd, from.bytes(), into.bytes());
  ASSERT_TRUE(consumed.has_value()) << consumed.error().text();
  EXPECT_EQ(*consumed, used);
  EXPECT_TRUE(std::ranges::equal(into.bytes(), expect));
}

void ExpectCorrupt(const Buffer& stream, size_t unit) {
  GuardedBuffer from(stream), into(unit);
  auto consumed = Decompress(Codec::kZstd, from.bytes(), into.bytes());
  ASSERT_FALSE(consumed.has_value());
  EXPECT_EQ(consumed.error().code(), Code::kCorrupt) << consumed.error().text();
}

TEST(ZstdTest, EveryLevelRoundTrips) {
  for (int level = 0; level <= 9; ++level) {
    auto compressor = Compressor::Create({.id = Codec::kZstd, .level = level});
    ASSERT_TRUE(compressor.has_value());
    for (size_t size : {size_t{1}, size_t{512}, size_t{65536}, size_t{2} << 20}) {
      if (level >= 5 && size > 65536) size = 200000;
      for (const Buffer& bytes : {TextBytes(size, size), MixedBytes(size, size),
                                  RandomBytes(size, size), Buffer(size, std::byte{1})}) {
        SCOPED_TRACE(std::to_string(level) + " " + std::to_string(size));
        GuardedBuffer from(bytes), room(ZSTD_compressBound(size));
        size_t used = (*compressor)->Compress(from.bytes(), room.bytes());
        ASSERT_GT(used, 0u);
        Buffer stream(room.bytes().begin(), room.bytes().begin() + static_cast<ptrdiff_t>(used));
        ExpectUnit(stream, bytes, used);
        ExpectUnit(stream + RandomBytes(700, 1), bytes, used);
        // Too little room.
        GuardedBuffer small(used - 1);
        EXPECT_EQ((*compressor)->Compress(from.bytes(), small.bytes()), 0u);
      }
    }
  }
}

TEST(ZstdTest, ForeignFrames) {
  Buffer text = TextBytes(65536, 1), large = MixedBytes(2 << 20, 2);
  for (bool sized : {true, false}) {
    for (bool checksum : {true, false}) {
      for (const Buffer& bytes : {text, large}) {
        Buffer stream = MakeFrame(bytes, {.size_in_header = sized, .checksum = checksum});
        ExpectUnit(stream, bytes, stream.size());
        ExpectUnit(stream + RandomBytes(100, 1), bytes, stream.size());
      }
    }
  }
}

TEST(ZstdTest, AnyWindowIsReadWhenTheFrameIsTheUnit) {
  Buffer bytes = PeriodicBytes(2 << 20, 700000, 4);
  for (int window : {10, 21, 27, 30}) {
    SCOPED_TRACE(window);
    Buffer stream = MakeFrame(bytes, {.size_in_header = false, .window_log = window});
    ExpectUnit(stream, bytes, stream.size());
  }
  Buffer ultra = MakeFrame(bytes, {.level = 19, .size_in_header = false});
  ExpectUnit(ultra, bytes, ultra.size());
}

TEST(ZstdTest, SeveralAndSkippableFrames) {
  Buffer bytes = TextBytes(65536, 1);
  ConstBytes all(bytes);
  for (bool sized : {true, false}) {
    Buffer first = MakeFrame(all.first(10000), {.size_in_header = sized});
    Buffer second = MakeFrame(all.subspan(10000), {.size_in_header = sized, .checksum = true});
    Buffer stream = first + Skippable(33, 33) + second;
    ExpectUnit(stream, bytes, stream.size());
    ExpectUnit(Skippable(5, 5) + stream, bytes, stream.size() + 13);
    ExpectUnit(stream + RandomBytes(90, 2), bytes, stream.size());
  }
}

TEST(ZstdTest, AFrameLongerThanTheUnitFillsIt) {
  Buffer bytes = TextBytes(65536, 1);
  Buffer start(bytes.begin(), bytes.begin() + 512);
  for (bool sized : {true, false}) {
    Buffer stream = MakeFrame(bytes, {.size_in_header = sized});
    GuardedBuffer from(stream), into(512);
    auto consumed = Decompress(Codec::kZstd, from.bytes(), into.bytes());
    ASSERT_TRUE(consumed.has_value()) << consumed.error().text();
    EXPECT_LE(*consumed, stream.size());
    EXPECT_TRUE(std::ranges::equal(into.bytes(), start));
  }
}

TEST(ZstdTest, CutOffIsCorrupt) {
  Buffer bytes = MixedBytes(3000, 1);
  for (bool sized : {true, false}) {
    Buffer stream = MakeFrame(bytes, {.size_in_header = sized});
    for (size_t keep = 0; keep < stream.size(); ++keep) {
      Buffer part(stream.begin(), stream.begin() + static_cast<ptrdiff_t>(keep));
      GuardedBuffer from(part), into(bytes.size());
      auto consumed = Decompress(Codec::kZstd, from.bytes(), into.bytes());
      // Only the end of the frame behind the last byte of the unit can be missed.
      if (consumed) {
        EXPECT_GE(keep + 3, stream.size());
        EXPECT_TRUE(std::ranges::equal(into.bytes(), bytes));
      } else {
        EXPECT_EQ(consumed.error().code(), Code::kCorrupt);
      }
    }
    ExpectCorrupt(stream, bytes.size() + 1);
  }
}

TEST(ZstdTest, HostileStreams) {
  // A skippable frame that claims 4 GiB, and one that hides everything there is.
  ExpectCorrupt(Skippable(0xffffffff, 600), 65536);
  ExpectCorrupt(Skippable(600, 600), 65536);
  ExpectCorrupt({}, 65536);
  ExpectCorrupt(Buffer(600), 65536);
  // Many empty frames: time is bounded by the input.
  Buffer empty = MakeFrame({}, {.size_in_header = true}), many;
  while (many.size() < 1 << 20) many.insert(many.end(), empty.begin(), empty.end());
  ExpectCorrupt(many, 65536);
  // A magic number and noise.
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    Buffer noise = RandomBytes(4 + seed % 200, seed);
    StoreAt(Bytes(noise), 0, le32(ZSTD_MAGICNUMBER));
    GuardedBuffer from(noise), into(4096);
    auto consumed = Decompress(Codec::kZstd, from.bytes(), into.bytes());
    if (!consumed) {
      EXPECT_EQ(consumed.error().code(), Code::kCorrupt);
    }
  }
}

TEST(ZstdTest, AWindowOfAGiBDoesNotTakeAGiB) {
  // One segment of 1 GiB: 24 bytes of header and run-length blocks of 128 KiB.
  Buffer bomb = {std::byte{0x28}, std::byte{0xb5}, std::byte{0x2f},
                 std::byte{0xfd}, std::byte{0xa0}, std::byte{0},
                 std::byte{0},    std::byte{0},    std::byte{0x40}};
  for (int block = 0; block < 8192; ++block) {
    uint32_t header = (131072u << 3) | (1u << 1) | (block == 8191);
    for (int shift : {0, 8, 16}) bomb.push_back(static_cast<std::byte>(header >> shift));
    bomb.push_back(std::byte{0x55});
  }
  ASSERT_EQ(ZSTD_getFrameContentSize(bomb.data(), bomb.size()), uint64_t{1} << 30);
  ExpectCorrupt(bomb, 65536);
}

TEST(ZstdTest, AWrongChecksumIsCorrupt) {
  Buffer bytes = TextBytes(65536, 1);
  for (bool sized : {true, false}) {
    Buffer stream = MakeFrame(bytes, {.size_in_header = sized, .checksum = true});
    stream.back() ^= std::byte{1};
    ExpectCorrupt(stream, bytes.size());
    ExpectCorrupt(Skippable(5, 5) + stream, bytes.size());
  }
}

TEST(ZstdTest, DamageNeverReadsOrWritesOutside) {
  std::mt19937_64 random(5);
  Buffer bytes = TextBytes(5000, 1);
  for (bool sized : {true, false}) {
    Buffer stream = MakeFrame(bytes, {.size_in_header = sized, .checksum = true});
    for (int round = 0; round < 5000; ++round) {
      Buffer damaged = stream;
      damaged[4 + random() % (damaged.size() - 4)] ^= static_cast<std::byte>(1u << random() % 8);
      GuardedBuffer from(damaged), into(bytes.size());
      auto consumed = Decompress(Codec::kZstd, from.bytes(), into.bytes());
      if (!consumed) {
        EXPECT_EQ(consumed.error().code(), Code::kCorrupt);
      }
    }
  }
}

// What a copy reckons with when it chooses the number of its workers.
TEST(Zstd, TakesNoMoreMemoryThanItSays) {
  constexpr int kZstdLevel[] = {2, 1, 2, 3, 5, 7, 9, 12, 15, 19};
  for (size_t unit : {64 * kKiB, 256 * kKiB, kMiB, 2 * kMiB}) {
    const Buffer from = PeriodicBytes(unit, 100, 1);
    Buffer into(ZSTD_compressBound(unit));
    for (int level = 0; level <= 9; ++level) {
      ZSTD_CCtx* context = ZSTD_createCCtx();
      ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, kZstdLevel[level]);
      ASSERT_FALSE(ZSTD_isError(
          ZSTD_compress2(context, into.data(), into.size(), from.data(), from.size())));
      EXPECT_LE(ZSTD_sizeof_CCtx(context),
                CompressorMemory({.id = Codec::kZstd, .level = level}, unit))
          << level << " " << unit;
      ZSTD_freeCCtx(context);
    }
  }
}

}  // namespace
}  // namespace platter
