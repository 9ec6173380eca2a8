// Read, Write, Zero and Discard on the toy layer. What random operations find is the model's work
// (tests/model); here are the promises that it cannot see.
#include "io/engine/engine.h"

#include <gtest/gtest.h>

#include <array>

#include "io/codec/cipher.h"
#include "io/codec/codec.h"
#include "io/memory_store.h"
#include "io/testing/toy_layer.h"
#include "io/testing/wrapper_layer.h"
#include "io/testing/wrapper_store.h"

namespace platter {
namespace {

constexpr uint32_t kCluster = 4096;

std::vector<std::byte> Pattern(size_t size, unsigned seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>((i * 7 + i / 251 + seed) | 1);
  return bytes;
}

struct CountingStore : WrapperStore {
  using WrapperStore::WrapperStore;
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    ++reads;
    return base_.Read(at, into);
  }
  Result<> Write(uint64_t at, std::span<const iovec> from) override {
    ++writes;
    if (fail_writes) return Fail(Code::kIo, "injected");
    return base_.Write(at, from);
  }
  int reads = 0, writes = 0;
  bool fail_writes = false;
};

struct CountingLayer : WrapperLayer {
  using WrapperLayer::WrapperLayer;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override {
    ++reserves;
    return base_.Reserve(want);
  }
  int reserves = 0;
};

class EngineTest : public testing::Test {
 protected:
  void Open(ToyLayer::Options options) {
    ASSERT_TRUE(ToyLayer::Create(memory_, options));
    auto layer = ToyLayer::Open(store_, options);
    ASSERT_TRUE(layer);
    layer_ = std::move(*layer);
    store_.reads = store_.writes = 0;
  }
  std::vector<std::byte> ReadAll(Range range) {
    std::vector<std::byte> bytes(range.length, std::byte{0xee});
    auto done = Read(*layer_, range.offset, Bytes(bytes));
    EXPECT_TRUE(done) << done.error().text();
    return bytes;
  }
  // Puts one packed unit into the layer.
  void PutPacked(uint64_t at, ConstBytes unit) {
    auto compressor = Compressor::Create({});
    ASSERT_TRUE(compressor);
    std::vector<std::byte> room(kCluster);
    uint32_t size = (*compressor)->Compress(unit, room);
    ASSERT_GT(size, 0u);
    auto reservation = layer_->ReservePacked({at, kCluster}, std::span(&size, 1));
    ASSERT_TRUE(reservation);
    ASSERT_TRUE(
        memory_.Write((*reservation)->target()[0].host.offset, ConstBytes(room).first(size)));
    ASSERT_TRUE((*reservation)->Publish());
  }

  MemoryStore memory_;
  CountingStore store_{memory_};
  std::unique_ptr<ToyLayer> layer_;
};

TEST_F(EngineTest, ReadsAcrossKinds) {
  Open({.size = 8 * kCluster});
  auto data = Pattern(kCluster, 1);
  ASSERT_TRUE(Write(*layer_, 2 * kCluster, data));
  ASSERT_TRUE(Zero(*layer_, {4 * kCluster, kCluster}, false));
  ASSERT_TRUE(Write(*layer_, 6 * kCluster + 10, ConstBytes(data).first(50)));
  auto all = ReadAll({0, 8 * kCluster});
  std::vector<std::byte> expected(8 * kCluster);
  std::ranges::copy(data, expected.begin() + 2 * kCluster);
  std::copy_n(data.begin(), 50, expected.begin() + 6 * kCluster + 10);
  EXPECT_EQ(all, expected);
}

TEST_F(EngineTest, EmptyAndOutsideRequests) {
  Open({.size = 100});
  std::array<std::byte, 2> two{};
  EXPECT_TRUE(Read(*layer_, 500, Bytes()));
  EXPECT_TRUE(Write(*layer_, 500, ConstBytes()));
  EXPECT_EQ(Read(*layer_, 99, Bytes(two)).error().code(), Code::kOutOfRange);
  EXPECT_EQ(Write(*layer_, 99, ConstBytes(two)).error().code(), Code::kOutOfRange);
  EXPECT_EQ(Zero(*layer_, {99, 2}, true).error().code(), Code::kOutOfRange);
  EXPECT_EQ(Discard(*layer_, {UINT64_MAX, 2}).error().code(), Code::kOutOfRange);
  EXPECT_TRUE(Zero(*layer_, {100, 0}, true));
}

TEST_F(EngineTest, OverwritesInPlaceWithoutReserving) {
  Open({.size = 8 * kCluster});
  CountingLayer counting(*layer_);
  ASSERT_TRUE(Write(counting, 0, Pattern(4 * kCluster, 1)));
  EXPECT_EQ(counting.reserves, 1);
  EXPECT_EQ(store_.writes, 1) << "one vector write for data that is contiguous on the host";
  ASSERT_TRUE(Write(counting, 100, Pattern(9000, 2)));
  EXPECT_EQ(counting.reserves, 1);
  EXPECT_EQ(store_.writes, 2);
  EXPECT_EQ(ReadAll({100, 9000}), Pattern(9000, 2));
}

TEST_F(EngineTest, FillAndDataGoOutInOneWrite) {
  Open({.size = 8 * kCluster});
  ASSERT_TRUE(Write(*layer_, kCluster + 100, Pattern(kCluster, 3)));
  EXPECT_EQ(store_.writes, 1);
  EXPECT_EQ(ReadAll({kCluster + 100, kCluster}), Pattern(kCluster, 3));
  EXPECT_EQ(ReadAll({kCluster, 100}), std::vector<std::byte>(100));
}

TEST_F(EngineTest, FailedWriteGivesItsSpaceBackAndLeavesTheOldBytes) {
  Open({.size = 8 * kCluster});
  ASSERT_TRUE(Write(*layer_, 0, Pattern(kCluster, 1)));
  store_.fail_writes = true;
  EXPECT_FALSE(Write(*layer_, kCluster, Pattern(kCluster, 2)));
  store_.fail_writes = false;
  EXPECT_EQ(layer_->used_clusters(), 1u);
  EXPECT_EQ(ReadAll({kCluster, kCluster}), std::vector<std::byte>(kCluster));
}

TEST_F(EngineTest, AUnitIsReadAndUnpackedOnceInOneCall) {
  Open({.size = 8 * kCluster, .compression = Codec::kDeflate});
  auto unit = Pattern(kCluster, 9);
  PutPacked(kCluster, unit);
  // One unit in three extents, as a chain's map gives it when a layer above covers its middle.
  struct Chain : WrapperLayer {
    using WrapperLayer::WrapperLayer;
    Result<size_t> Map(Range want, std::span<Extent> out) override {
      size_t count =
          TRY(base_.Map({want.offset, std::min<uint64_t>(want.length, 1000)}, out.first(1)));
      uint64_t at = out[0].guest.end();
      while (count < out.size() && at < want.end()) {
        TRY(base_.Map({at, std::min<uint64_t>(want.end() - at, 1000)}, out.subspan(count, 1)));
        at = out[count++].guest.end();
      }
      return count;
    }
  } chain(*layer_);
  store_.reads = 0;
  std::vector<std::byte> bytes(3500);
  ASSERT_TRUE(Read(chain, kCluster + 100, Bytes(bytes)));
  EXPECT_TRUE(std::ranges::equal(bytes, std::span(unit).subspan(100, 3500)));
  EXPECT_EQ(store_.reads, 1);
}

TEST_F(EngineTest, SmallReadsSideBySideUnpackAUnitTwiceAtMost) {
  Open({.size = 8 * kCluster, .compression = Codec::kDeflate});
  auto unit = Pattern(kCluster, 9);
  PutPacked(kCluster, unit);
  store_.reads = 0;
  for (uint64_t at = 0; at < kCluster; at += 256) {
    EXPECT_TRUE(
        std::ranges::equal(ReadAll({kCluster + at, 256}), std::span(unit).subspan(at, 256)));
  }
  EXPECT_EQ(store_.reads, 2) << "its beginning, then all of it";
}

// A unit takes the place that an earlier one had on the host, as soon as it may.
TEST_F(EngineTest, AKeptUnitIsNotTakenForTheOneThatReplacesIt) {
  Open({.size = 2 * kCluster, .compression = Codec::kDeflate});
  std::vector<Range> places;
  int reused = 0;
  for (int round = 0; round < 20; ++round) {
    // All of them pack to the same length.
    std::vector<std::byte> unit(kCluster, std::byte(round + 1));
    PutPacked(0, unit);
    Extent extent;
    ASSERT_TRUE(layer_->Map({0, kCluster}, std::span(&extent, 1)));
    reused += std::ranges::find(places, extent.host) != places.end();
    places.push_back(extent.host);
    for (uint64_t at : {0, 1000, 2000}) {
      EXPECT_TRUE(std::ranges::equal(ReadAll({at, 100}), std::span(unit).subspan(at, 100)))
          << "round " << round;
    }
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(layer_->Flush());
  }
  EXPECT_GT(reused, 10) << "else this test shows nothing";
}

TEST_F(EngineTest, DamageBehindWhatIsReadDoesNotFailTheRead) {
  Open({.size = 8 * kCluster, .compression = Codec::kDeflate});
  // RFC 1951: 2000 bytes as they are (3.2.4), then a block of the type that there is not.
  auto unit = Pattern(2000, 9);
  std::vector<std::byte> packed = {std::byte{0}, std::byte{0xd0}, std::byte{0x07}, std::byte{0x2f},
                                   std::byte{0xf8}};
  packed.insert(packed.end(), unit.begin(), unit.end());
  packed.push_back(std::byte{7});
  auto size = static_cast<uint32_t>(packed.size());
  auto reservation = layer_->ReservePacked({kCluster, kCluster}, std::span(&size, 1));
  ASSERT_TRUE(reservation);
  ASSERT_TRUE(memory_.Write((*reservation)->target()[0].host.offset, ConstBytes(packed)));
  ASSERT_TRUE((*reservation)->Publish());
  std::vector<std::byte> whole(kCluster);
  ASSERT_FALSE(Read(*layer_, kCluster, Bytes(whole))) << "else this test shows nothing";
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(
        std::ranges::equal(ReadAll({kCluster + 500, 100}), std::span(unit).subspan(500, 100)));
  }
}

TEST_F(EngineTest, CorruptUnitNamesItsPlace) {
  Open({.size = 8 * kCluster, .compression = Codec::kZstd});
  uint32_t size = 77;
  auto reservation = layer_->ReservePacked({0, kCluster}, std::span(&size, 1));
  ASSERT_TRUE(reservation);
  ASSERT_TRUE(memory_.Write((*reservation)->target()[0].host.offset, ConstBytes(Pattern(77, 0))));
  ASSERT_TRUE((*reservation)->Publish());
  std::vector<std::byte> bytes(kCluster);
  auto done = Read(*layer_, 0, Bytes(bytes));
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Code::kCorrupt);
  EXPECT_NE(done.error().text().find("compressed unit at 0x2000 of 'memory'"), std::string::npos)
      << done.error().text();
}

TEST_F(EngineTest, WritesOverPackedUnitsKeepTheRest) {
  Open({.size = 8 * kCluster, .compression = Codec::kDeflate});
  auto unit = Pattern(kCluster, 9);
  PutPacked(kCluster, unit);
  ASSERT_TRUE(Write(*layer_, kCluster + 1000, Pattern(10, 5)));
  std::ranges::copy(Pattern(10, 5), unit.begin() + 1000);
  EXPECT_EQ(ReadAll({kCluster, kCluster}), unit);
}

class EncryptedTest : public EngineTest, public testing::WithParamInterface<Cipher::Tweak> {
 protected:
  void SetUp() override {
    auto cipher = Cipher::Create(Cipher::Mode::kXts, Cipher::Iv::kPlain64, GetParam(),
                                 Secret(Pattern(64, 3)));
    ASSERT_TRUE(cipher) << cipher.error().text();
    cipher_ = std::move(*cipher);
  }
  std::unique_ptr<Cipher> cipher_;
};

TEST_P(EncryptedTest, RaggedReadsAndWrites) {
  Open({.size = 300 * kCluster, .reserve_limit = 1000, .cipher = cipher_.get()});
  std::vector<std::byte> expected(300 * kCluster);
  auto write = [&](uint64_t at, size_t length, unsigned seed) {
    auto data = Pattern(length, seed);
    ASSERT_TRUE(Write(*layer_, at, data));
    std::ranges::copy(data, expected.begin() + at);
  };
  write(10, 300 * kCluster - 20, 1);  // more than one bounce buffer
  write(513, 1, 2);
  write(511, 2, 3);
  write(8 * kCluster - 3, 700, 4);
  EXPECT_EQ(ReadAll({0, 300 * kCluster}), expected);
  for (Range part : {Range{1, 510}, Range{500, 30}, Range{512, 512}, Range{777, 299 * kCluster}}) {
    EXPECT_TRUE(
        std::ranges::equal(ReadAll(part), std::span(expected).subspan(part.offset, part.length)));
  }
  // A scatter list that cuts sectors.
  std::vector<std::byte> a(700), b(5000);
  std::array<iovec, 2> cut{iovec{a.data(), a.size()}, iovec{b.data(), b.size()}};
  ASSERT_TRUE(Read(*layer_, 1024, cut));
  EXPECT_TRUE(std::ranges::equal(a, std::span(expected).subspan(1024, 700)));
  EXPECT_TRUE(std::ranges::equal(b, std::span(expected).subspan(1724, 5000)));
  // The store never sees plain bytes.
  auto raw = memory_.Contents();
  EXPECT_TRUE(std::ranges::search(raw, std::span(expected).subspan(4096, 64)).empty());
}

INSTANTIATE_TEST_SUITE_P(Tweaks, EncryptedTest,
                         testing::Values(Cipher::Tweak::kGuest, Cipher::Tweak::kHost),
                         [](const auto& info) {
                           return info.param == Cipher::Tweak::kGuest ? "guest" : "host";
                         });

TEST_F(EngineTest, ZeroDropsWholeUnitsAndWritesTheRaggedRest) {
  Open({.size = 8 * kCluster});
  auto data = Pattern(8 * kCluster, 1);
  ASSERT_TRUE(Write(*layer_, 0, data));
  ASSERT_TRUE(Zero(*layer_, {100, 3 * kCluster}, true));
  std::fill_n(data.begin() + 100, 3 * kCluster, std::byte{0});
  EXPECT_EQ(ReadAll({0, 8 * kCluster}), data);
  EXPECT_EQ(layer_->used_clusters(), 6u);
}

TEST_F(EngineTest, ZeroOfWhatIsZeroAllocatesNothing) {
  Open({.size = 8 * kCluster});
  ASSERT_TRUE(Zero(*layer_, {100, 50}, true));
  ASSERT_TRUE(Zero(*layer_, {100, 5 * kCluster}, false));
  EXPECT_EQ(layer_->used_clusters(), 0u);
  EXPECT_EQ(store_.writes, 0);
}

TEST_F(EngineTest, ZeroHidesTheParent) {
  Open({.size = 8 * kCluster, .has_parent = true});
  ASSERT_TRUE(Zero(*layer_, {100, 5 * kCluster}, true));
  std::array<Extent, 8> out;
  auto count = layer_->Map({0, 8 * kCluster}, out);
  ASSERT_TRUE(count);
  for (const Extent& extent : std::span(out).first(*count)) {
    EXPECT_EQ(extent.kind == Kind::kParent, extent.guest.offset >= 6 * kCluster);
  }
}

TEST_F(EngineTest, DiscardLeavesRaggedEnds) {
  Open({.size = 8 * kCluster});
  auto data = Pattern(8 * kCluster, 1);
  ASSERT_TRUE(Write(*layer_, 0, data));
  ASSERT_TRUE(Discard(*layer_, {100, 3 * kCluster}));
  std::fill_n(data.begin() + kCluster, 2 * kCluster, std::byte{0});
  EXPECT_EQ(ReadAll({0, 8 * kCluster}), data);
}

TEST_F(EngineTest, TryReadServesAPrefix) {
  Open({.size = 8 * kCluster, .compression = Codec::kDeflate});
  auto data = Pattern(kCluster, 1);
  ASSERT_TRUE(Write(*layer_, kCluster, data));
  PutPacked(2 * kCluster, data);
  std::vector<std::byte> bytes(3 * kCluster, std::byte{0xee});
  iovec one{bytes.data(), bytes.size()};
  EXPECT_EQ(TryRead(*layer_, 0, std::span(&one, 1)), 2 * kCluster) << "up to the packed unit";
  EXPECT_TRUE(std::ranges::equal(std::span(bytes).subspan(kCluster, kCluster), data));
}

}  // namespace
}  // namespace platter
