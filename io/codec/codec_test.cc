#include "io/codec/codec.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <optional>
#include <thread>

#include "io/codec/codec_test_util.h"

namespace platter {
namespace {

using testing::Buffer;
using testing::GuardedBuffer;
using testing::MixedBytes;
using testing::PeriodicBytes;
using testing::RandomBytes;
using testing::TextBytes;

struct Sample {
  std::string name;
  Buffer bytes;
};

const std::vector<Sample>& Samples() {
  static const std::vector<Sample> samples = [] {
    std::vector<Sample> all;
    all.push_back({"one byte", Buffer(1, std::byte{42})});
    all.push_back({"two bytes", RandomBytes(2, 1)});
    for (size_t size : {size_t{512}, size_t{4096}, size_t{65536}, size_t{2} << 20}) {
      std::string suffix = " " + std::to_string(size);
      all.push_back({"equal" + suffix, Buffer(size, std::byte{0xee})});
      all.push_back({"random" + suffix, RandomBytes(size, size)});
      all.push_back({"text" + suffix, TextBytes(size, size)});
      all.push_back({"mixed" + suffix, MixedBytes(size, size)});
    }
    for (size_t period :
         {1, 2, 3, 258, 259, 3833, 3834, 4095, 4096, 4097, 4098, 5000, 32767, 32768, 32769}) {
      all.push_back({"period " + std::to_string(period), PeriodicBytes(131072, period, period)});
    }
    for (size_t size : {3, 100, 511, 513, 5000, 65535, 65537, 100000}) {
      all.push_back({"mixed " + std::to_string(size), MixedBytes(size, size)});
    }
    return all;
  }();
  return samples;
}

std::unique_ptr<Compressor> Make(const Compressor::Options& options) {
  auto made = Compressor::Create(options);
  EXPECT_TRUE(made.has_value()) << (made ? "" : made.error().text());
  return std::move(*made);
}

// What zlib makes of a raw stream when it may remember no more than 2^window_bits bytes: it is
// given one byte of output at a time, so that it cannot look back into the caller's buffer.
// Nothing if it finds an error or the stream does not end with its input.
std::optional<Buffer> InflateRemembering(int window_bits, ConstBytes from, size_t expect) {
  z_stream stream = {};
  CHECK(inflateInit2(&stream, -window_bits) == Z_OK);
  stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(from.data()));
  stream.avail_in = static_cast<uInt>(from.size());
  Buffer out;
  out.reserve(expect);
  int result = Z_OK;
  while (result == Z_OK) {
    unsigned char byte = 0;
    stream.next_out = &byte;
    stream.avail_out = 1;
    result = inflate(&stream, Z_NO_FLUSH);
    if (stream.avail_out == 0) out.push_back(std::byte{byte});
    if (out.size() > expect) break;
  }
  bool good = result == Z_STREAM_END && stream.avail_in == 0;
  inflateEnd(&stream);
  if (!good) return std::nullopt;
  return out;
}

// How QEMU reads a compressed cluster: all of it at once through a 12-bit zlib; it takes a full
// buffer from a stream that ended or would go on.
struct ZlibVerdict {
  bool ok;
  std::string problem;
};
ZlibVerdict InflateAsQemu(ConstBytes from, Bytes into) {
  z_stream stream = {};
  CHECK(inflateInit2(&stream, -12) == Z_OK);
  stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(from.data()));
  stream.avail_in = static_cast<uInt>(from.size());
  stream.next_out = reinterpret_cast<Bytef*>(into.data());
  stream.avail_out = static_cast<uInt>(into.size());
  int result = inflate(&stream, Z_FINISH);
  bool ok = (result == Z_STREAM_END || result == Z_BUF_ERROR) && stream.avail_out == 0;
  std::string problem = stream.msg ? stream.msg : "";
  inflateEnd(&stream);
  return {ok, problem};
}

Buffer ZlibRaw(ConstBytes from, int level, int window_bits) {
  z_stream stream = {};
  CHECK(deflateInit2(&stream, level, Z_DEFLATED, window_bits, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  Buffer out(deflateBound(&stream, from.size()) + 64);
  stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(from.data()));
  stream.avail_in = static_cast<uInt>(from.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

TEST(DeflateTest, TheJudgeOfWindowsSeesAFarMatch) {
  Buffer bytes = PeriodicBytes(131072, 4097, 1);
  EXPECT_FALSE(InflateRemembering(12, ZlibRaw(bytes, 6, -15), bytes.size()).has_value());
  Buffer near = PeriodicBytes(131072, 3800, 1);
  EXPECT_EQ(InflateRemembering(12, ZlibRaw(near, 6, -12), near.size()), near);
}

class DeflateLevels : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(All, DeflateLevels, ::testing::Range(0, 10));

TEST_P(DeflateLevels, StreamsStayWithinTheWindowAndComeBack) {
  auto compressor = Make({.id = Codec::kDeflate, .level = GetParam(), .window_bits = 12});
  for (const Sample& sample : Samples()) {
    SCOPED_TRACE(sample.name);
    GuardedBuffer from(sample.bytes), room(sample.bytes.size() + sample.bytes.size() / 100 + 400);
    size_t used = compressor->Compress(from.bytes(), room.bytes());
    ASSERT_GT(used, 0u);
    ConstBytes stream = room.bytes().first(used);
    // Compared as a bool: a difference of two MiB is no message.
    auto judged = InflateRemembering(12, stream, sample.bytes.size());
    ASSERT_TRUE(judged.has_value()) << "a match is too far back, or the stream is not one";
    ASSERT_TRUE(*judged == sample.bytes);

    GuardedBuffer exact(stream), into(sample.bytes.size());
    auto consumed = Decompress(Codec::kDeflate, exact.bytes(), into.bytes());
    ASSERT_TRUE(consumed.has_value()) << consumed.error().text();
    EXPECT_EQ(*consumed, used);
    EXPECT_TRUE(std::ranges::equal(into.bytes(), sample.bytes));
  }
}

TEST_P(DeflateLevels, TooLittleRoomIsZeroAndNothingIsWrittenBehindIt) {
  auto compressor = Make({.id = Codec::kDeflate, .level = GetParam()});
  for (const Sample& sample : Samples()) {
    if (sample.bytes.size() > 131072) continue;
    SCOPED_TRACE(sample.name);
    GuardedBuffer from(sample.bytes), large(sample.bytes.size() + 1000);
    size_t used = compressor->Compress(from.bytes(), large.bytes());
    ASSERT_GT(used, 0u);
    for (size_t room : {used - 1, used / 2, used / 10, size_t{1}, size_t{0}}) {
      if (room >= used) continue;
      GuardedBuffer small(room);
      size_t got = compressor->Compress(from.bytes(), small.bytes());
      EXPECT_LE(got, room);
      if (got == 0) continue;
      // With less room it found another way (stored blocks): it must still be the same content.
      auto judged = InflateRemembering(12, small.bytes().first(got), sample.bytes.size());
      ASSERT_TRUE(judged.has_value());
      EXPECT_TRUE(*judged == sample.bytes);
    }
    // The context is as good as new afterwards.
    EXPECT_EQ(compressor->Compress(from.bytes(), large.bytes()), used);
  }
}

TEST_P(DeflateLevels, WithTheZlibWrapper) {
  auto compressor = Make({.id = Codec::kZlib, .level = GetParam()});
  for (const Sample& sample : Samples()) {
    SCOPED_TRACE(sample.name);
    Buffer room(sample.bytes.size() + sample.bytes.size() / 100 + 400);
    size_t used = compressor->Compress(sample.bytes, room);
    ASSERT_GT(used, 0u);
    Buffer back(sample.bytes.size());
    uLongf size = back.size();
    ASSERT_EQ(uncompress(reinterpret_cast<Bytef*>(back.data()), &size,
                         reinterpret_cast<const Bytef*>(room.data()), used),
              Z_OK);
    EXPECT_EQ(size, back.size());
    EXPECT_TRUE(back == sample.bytes);
  }
}

TEST(DeflateTest, LevelsTradeSizeForTime) {
  Buffer text = TextBytes(65536, 3);
  Buffer room(65536);
  size_t fast = Make({.level = 1})->Compress(text, room);
  size_t usual = Make({.level = 0})->Compress(text, room);
  size_t small = Make({.level = 9})->Compress(text, room);
  EXPECT_GT(fast, 0u);
  EXPECT_LE(usual, fast);
  EXPECT_LE(small, ZlibRaw(text, 6, -12).size());
}

TEST(InflateTest, ReadsWhatZlibWritesAndSaysWhereItEnds) {
  for (const Sample& sample : Samples()) {
    for (int window : {-12, -15}) {
      for (int level : {0, 6}) {
        SCOPED_TRACE(sample.name + " window " + std::to_string(window));
        Buffer stream = ZlibRaw(sample.bytes, level, window);
        size_t used = stream.size();
        for (size_t behind : {0, 5, 600}) {
          Buffer followed = stream;
          Buffer garbage = RandomBytes(behind, behind);
          followed.insert(followed.end(), garbage.begin(), garbage.end());
          GuardedBuffer from(followed), into(sample.bytes.size());
          auto consumed = Decompress(Codec::kDeflate, from.bytes(), into.bytes());
          ASSERT_TRUE(consumed.has_value()) << consumed.error().text();
          EXPECT_EQ(*consumed, used);
          EXPECT_TRUE(std::ranges::equal(into.bytes(), sample.bytes));
        }
      }
    }
  }
}

TEST(ZlibTest, IsReadToItsEndWhereItsChecksumIs) {
  Buffer text = TextBytes(65536, 7), noise = RandomBytes(65536, 8);
  for (const Buffer* unit : {&text, &noise}) {
    for (int level : {1, 0, 9}) {
      Buffer stream(70000);
      size_t used = Make({.id = Codec::kZlib, .level = level})->Compress(*unit, stream);
      ASSERT_GT(used, 0u);
      stream.resize(used);
      Buffer followed = stream;
      followed.resize(used + 100, std::byte{0x55});
      for (size_t length : {size_t{65536}, size_t{1000}, size_t{1}}) {
        GuardedBuffer from(followed), into(length);
        auto consumed = Decompress(Codec::kZlib, from.bytes(), into.bytes());
        ASSERT_TRUE(consumed.has_value()) << consumed.error().text();
        EXPECT_EQ(*consumed, used) << "also where the unit is shorter than the stream";
        EXPECT_TRUE(std::equal(into.bytes().begin(), into.bytes().end(), unit->begin()));
        // Damage to the checksum, and to data behind what was asked for.
        for (size_t at : {used - 1, used - 4, used / 2}) {
          Buffer bad = followed;
          bad[at] ^= std::byte{0x10};
          auto result = Decompress(Codec::kZlib, bad, into.bytes());
          EXPECT_FALSE(result.has_value()) << "byte " << at;
        }
      }
      Buffer whole(65537);
      EXPECT_FALSE(Decompress(Codec::kZlib, stream, whole)) << "one byte too short";
      for (size_t cut : {size_t{0}, size_t{1}, size_t{2}, used / 2, used - 1}) {
        EXPECT_FALSE(
            Decompress(Codec::kZlib, ConstBytes(stream).first(cut), Bytes(whole).first(9)));
      }
    }
  }
}

TEST(InflateTest, AStreamLongerThanTheUnitFillsIt) {
  for (int level : {0, 1, 6}) {
    for (const Sample& sample : Samples()) {
      if (sample.bytes.size() < 100) continue;
      SCOPED_TRACE(sample.name + " level " + std::to_string(level));
      Buffer stream = ZlibRaw(sample.bytes, level, -12);
      for (size_t unit : {size_t{1}, sample.bytes.size() / 2, sample.bytes.size() - 1}) {
        GuardedBuffer from(stream), into(unit);
        auto consumed = Decompress(Codec::kDeflate, from.bytes(), into.bytes());
        ASSERT_TRUE(consumed.has_value()) << consumed.error().text();
        EXPECT_LE(*consumed, stream.size());
        EXPECT_TRUE(std::equal(into.bytes().begin(), into.bytes().end(), sample.bytes.begin()));
      }
    }
  }
}

TEST(InflateTest, AStreamCutOffIsCorruptUnlessTheUnitIsFull) {
  Buffer bytes = MixedBytes(4096, 5);
  for (int level : {0, 6}) {
    Buffer stream = ZlibRaw(bytes, level, -12);
    for (size_t keep = 0; keep < stream.size(); ++keep) {
      GuardedBuffer from(ConstBytes(stream).first(keep)), into(bytes.size());
      Buffer other(bytes.size());
      bool theirs = InflateAsQemu(from.bytes(), other).ok;
      auto ours = Decompress(Codec::kDeflate, from.bytes(), into.bytes());
      ASSERT_EQ(ours.has_value(), theirs) << keep << " of " << stream.size();
      if (!ours) {
        EXPECT_EQ(ours.error().code(), Code::kCorrupt);
      }
      if (ours) {
        EXPECT_TRUE(std::ranges::equal(into.bytes(), bytes));
      }
    }
  }
}

TEST(InflateTest, AnEarlyEndIsCorrupt) {
  Buffer bytes = TextBytes(4000, 5);
  Buffer into(4096);
  auto ours = Decompress(Codec::kDeflate, ZlibRaw(bytes, 6, -12), into);
  ASSERT_FALSE(ours.has_value());
  EXPECT_EQ(ours.error().code(), Code::kCorrupt);
  EXPECT_NE(ours.error().text().find("4000 of 4096"), std::string::npos) << ours.error().text();
}

TEST(InflateTest, AZlibHeaderInFrontIsCorrupt) {
  for (const Sample& sample : Samples()) {
    SCOPED_TRACE(sample.name);
    for (int window : {12, 15}) {
      Buffer into(sample.bytes.size());
      auto ours = Decompress(Codec::kDeflate, ZlibRaw(sample.bytes, 6, window), into);
      ASSERT_FALSE(ours.has_value());
      EXPECT_EQ(ours.error().code(), Code::kCorrupt);
    }
  }
}

TEST(InflateTest, NothingAndEmptyUnits) {
  Buffer into(512);
  EXPECT_FALSE(Decompress(Codec::kDeflate, {}, into).has_value());
  EXPECT_FALSE(Decompress(Codec::kZstd, {}, into).has_value());
  EXPECT_EQ(Decompress(Codec::kDeflate, {}, {}).value(), 0u);
  auto none = Decompress(Codec::kNone, into, into);
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().code(), Code::kUnsupported);
}

// zlib rejects a dynamic block whose Huffman codes are incomplete; ISA-L does not (see deflate.cc).
bool IsAboutACodeSet(const std::string& problem) {
  return problem == "invalid literal/lengths set" || problem == "invalid distances set" ||
         problem == "invalid code lengths set";
}

TEST(InflateTest, DamageIsJudgedAsByZlib) {
  std::mt19937_64 random(20261123);
  int rejected = 0, accepted = 0, ours_only = 0;
  for (int round = 0; round < 20000; ++round) {
    size_t size = 1 + random() % 3000;
    Buffer bytes = round % 3 == 0 ? MixedBytes(size, random()) : TextBytes(size, random() % 64);
    Buffer stream = ZlibRaw(bytes, static_cast<int>(random() % 10), -12);
    for (size_t n = 1 + random() % 3; n > 0; --n) {
      size_t at = random() % (round % 2 ? stream.size() : std::min<size_t>(stream.size(), 80));
      stream[at] ^= static_cast<std::byte>(1u << random() % 8);
    }
    if (random() % 4 == 0) stream.resize(random() % stream.size() + 1);
    Buffer theirs(size);
    ZlibVerdict verdict = InflateAsQemu(stream, theirs);
    GuardedBuffer from(stream), into(size);
    auto ours = Decompress(Codec::kDeflate, from.bytes(), into.bytes());
    if (ours.has_value() && verdict.ok) {
      ++accepted;
      ASSERT_TRUE(std::ranges::equal(into.bytes(), theirs)) << "round " << round;
    } else if (ours.has_value()) {
      ++ours_only;
      ASSERT_TRUE(IsAboutACodeSet(verdict.problem)) << "round " << round << ": " << verdict.problem;
    } else {
      ++rejected;
      ASSERT_FALSE(verdict.ok) << "round " << round << ": " << ours.error().text();
    }
  }
  EXPECT_GT(rejected, 1000);
  EXPECT_GT(accepted, 1000);
  EXPECT_LT(ours_only, 100);
}

TEST(InflateTest, GarbageIsJudgedAsByZlib) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 20000; ++round) {
    Buffer garbage = RandomBytes(1 + random() % 600, random());
    size_t size = 1 + random() % 1000;
    Buffer theirs(size);
    ZlibVerdict verdict = InflateAsQemu(garbage, theirs);
    GuardedBuffer from(garbage), into(size);
    auto ours = Decompress(Codec::kDeflate, from.bytes(), into.bytes());
    if (ours.has_value() && !verdict.ok) {
      ASSERT_TRUE(IsAboutACodeSet(verdict.problem)) << "round " << round << ": " << verdict.problem;
      continue;
    }
    ASSERT_EQ(ours.has_value(), verdict.ok) << "round " << round;
    if (verdict.ok) {
      ASSERT_TRUE(std::ranges::equal(into.bytes(), theirs)) << "round " << round;
    }
  }
}

TEST(CompressorTest, BadOptionsAreRefused) {
  EXPECT_EQ(Compressor::Create({.level = 10}).error().code(), Code::kOutOfRange);
  EXPECT_EQ(Compressor::Create({.level = -1}).error().code(), Code::kOutOfRange);
  EXPECT_EQ(Compressor::Create({.window_bits = 8}).error().code(), Code::kOutOfRange);
  EXPECT_EQ(Compressor::Create({.window_bits = 16}).error().code(), Code::kOutOfRange);
  EXPECT_EQ(Compressor::Create({.id = Codec::kNone}).error().code(), Code::kUnsupported);
}

TEST(CodecTest, ManyThreadsAtOnce) {
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (Codec::Id id : {Codec::kDeflate, Codec::kZstd}) {
        auto compressor = Make({.id = id});
        for (uint64_t round = 0; round < 20; ++round) {
          Buffer bytes = TextBytes(30000 + 1000 * t + round, 100 * t + round);
          Buffer room(bytes.size()), into(bytes.size());
          size_t used = compressor->Compress(bytes, room);
          ASSERT_GT(used, 0u);
          EXPECT_EQ(Decompress(id, room, into).value(), used);
          EXPECT_TRUE(into == bytes);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(CodecTest, Names) {
  EXPECT_EQ(CodecName(Codec::kNone), "none");
  EXPECT_EQ(CodecName(Codec::kDeflate), "deflate");
  EXPECT_EQ(CodecName(Codec::kZstd), "zstd");
}

}  // namespace
}  // namespace platter
