#include "io/testing/toy_layer.h"

#include <gtest/gtest.h>

#include <array>

#include "io/memory_store.h"

namespace platter {
namespace {

constexpr uint32_t kCluster = 4096;

class ToyLayerTest : public testing::Test {
 protected:
  void Open(ToyLayer::Options options) {
    options_ = options;
    ASSERT_TRUE(ToyLayer::Create(store_, options));
    Reopen();
  }
  void Reopen() {
    layer_.reset();
    auto layer = ToyLayer::Open(store_, options_);
    ASSERT_TRUE(layer) << layer.error().text();
    layer_ = std::move(*layer);
  }
  void Fill(uint64_t cluster) {
    auto reservation = layer_->Reserve({cluster * kCluster, kCluster});
    ASSERT_TRUE(reservation);
    std::vector<std::byte> data(kCluster, std::byte{1});
    ASSERT_TRUE(store_.Write((*reservation)->target()[0].host.offset, ConstBytes(data)));
    ASSERT_TRUE((*reservation)->Publish());
  }
  Extent MapOne(Range range) {
    Extent extent;
    auto count = layer_->Map(range, std::span(&extent, 1));
    EXPECT_TRUE(count && *count == 1);
    return extent;
  }

  MemoryStore store_;
  ToyLayer::Options options_;
  std::unique_ptr<ToyLayer> layer_;
};

TEST_F(ToyLayerTest, MapsMergesAndClips) {
  Open({.size = 10 * kCluster});
  Fill(2);
  Fill(3);
  std::array<Extent, 8> out;
  auto count = layer_->Map({100, 10 * kCluster - 100}, out);
  ASSERT_TRUE(count);
  ASSERT_EQ(*count, 3u);
  EXPECT_EQ(out[0].kind, Kind::kHole);
  EXPECT_EQ(out[0].guest, (Range{100, 2 * kCluster - 100}));
  EXPECT_EQ(out[1].kind, Kind::kData);
  EXPECT_TRUE(out[1].writable);
  EXPECT_EQ(out[1].guest, (Range{2 * kCluster, 2 * kCluster}));
  EXPECT_EQ(out[1].host.length, 2 * kCluster);
  EXPECT_EQ(MapOne({2 * kCluster + 5, 7}).host.offset, out[1].host.offset + 5);
  EXPECT_EQ(layer_->Map({10 * kCluster, 1}, out).error().code(), Code::kOutOfRange);
  EXPECT_EQ(layer_->Map({0, 0}, out).error().code(), Code::kOutOfRange);
}

TEST_F(ToyLayerTest, ReservationIsUnseenUntilPublishedAndDroppedWithoutTrace) {
  Open({.size = 10 * kCluster});
  {
    auto reservation = layer_->Reserve({kCluster + 10, 20});
    ASSERT_TRUE(reservation);
    EXPECT_EQ((*reservation)->range(), (Range{kCluster + 10, 20}));
    ASSERT_EQ((*reservation)->fill().size(), 2u);
    EXPECT_EQ((*reservation)->fill()[0], (Range{kCluster, 10}));
    EXPECT_EQ((*reservation)->fill()[1], (Range{kCluster + 30, kCluster - 30}));
    EXPECT_EQ(MapOne({kCluster, 1}).kind, Kind::kHole);
    EXPECT_EQ(layer_->used_clusters(), 1u);
  }
  EXPECT_EQ(layer_->used_clusters(), 0u);
  Fill(1);
  EXPECT_EQ(MapOne({kCluster, 1}).kind, Kind::kData);
}

TEST_F(ToyLayerTest, ReservesAPrefixUpToWhereTheKindChanges) {
  Open({.size = 10 * kCluster, .reserve_limit = 3});
  Fill(2);
  auto fresh = layer_->Reserve({0, 10 * kCluster});
  ASSERT_TRUE(fresh);
  EXPECT_EQ((*fresh)->range(), (Range{0, 2 * kCluster}));
  fresh->reset();
  auto in_place = layer_->Reserve({2 * kCluster + 1, kCluster});
  ASSERT_TRUE(in_place);
  EXPECT_EQ((*in_place)->range(), (Range{2 * kCluster + 1, kCluster - 1}));
  EXPECT_TRUE((*in_place)->fill().empty());
}

TEST_F(ToyLayerTest, FreedSpaceWaitsForPinsAndForTheTable) {
  Open({.size = 10 * kCluster});
  Fill(0);
  uint64_t host = MapOne({0, 1}).host.offset;
  auto pin = std::make_unique<Pin>(layer_->Hold());
  ASSERT_EQ(*layer_->Discard({0, kCluster}, Kind::kHole), (Range{0, kCluster}));
  ASSERT_TRUE(layer_->Flush());
  Fill(1);
  EXPECT_NE(MapOne({kCluster, 1}).host.offset, host) << "reused under a Pin";
  pin.reset();
  ASSERT_TRUE(layer_->Discard({kCluster, kCluster}, Kind::kHole));
  Fill(2);
  EXPECT_EQ(MapOne({2 * kCluster, 1}).host.offset, host) << "free, and its table durable";
  uint64_t second = host + kCluster;
  Fill(3);
  EXPECT_NE(MapOne({3 * kCluster, 1}).host.offset, second) << "the durable table still names it";
}

TEST_F(ToyLayerTest, DiscardLeavesRaggedEndsAndTreatsTheDisksEndAsWhole) {
  Open({.size = 3 * kCluster + 100, .has_parent = true});
  EXPECT_EQ(MapOne({0, 3 * kCluster + 100}).kind, Kind::kParent);
  EXPECT_EQ(*layer_->Discard({1, 2 * kCluster}, Kind::kHole), (Range{kCluster, kCluster}));
  EXPECT_EQ(MapOne({kCluster, kCluster}).kind, Kind::kZero);
  EXPECT_TRUE(layer_->Discard({1, 100}, Kind::kZero)->empty());
  EXPECT_EQ(*layer_->Discard({2 * kCluster, kCluster + 100}, Kind::kZero),
            (Range{2 * kCluster, kCluster + 100}));
}

TEST_F(ToyLayerTest, SurvivesReopeningAsOfTheLastFlush) {
  Open({.size = 10 * kCluster});
  Fill(4);
  ASSERT_TRUE(layer_->Flush());
  Fill(5);
  Reopen();
  EXPECT_EQ(MapOne({4 * kCluster, kCluster}).kind, Kind::kData);
  EXPECT_EQ(MapOne({5 * kCluster, kCluster}).kind, Kind::kHole);
  auto sound = ToyLayer::Check(store_, options_);
  EXPECT_TRUE(sound && *sound);
}

TEST_F(ToyLayerTest, PackedUnitsLieOneAfterTheOther) {
  Open({.size = 10 * kCluster, .compression = Codec::kDeflate});
  std::array<uint32_t, 3> sizes{100, 200, 4000};
  auto reservation = layer_->ReservePacked({kCluster, 3 * kCluster}, sizes);
  ASSERT_TRUE(reservation);
  auto target = (*reservation)->target();
  ASSERT_EQ(target.size(), 3u);
  EXPECT_EQ(target[1].host.offset, target[0].host.offset + 100);
  EXPECT_EQ(target[2].host.offset, target[0].host.offset + 300);
  ASSERT_TRUE((*reservation)->Publish());
  reservation->reset();
  Extent extent = MapOne({2 * kCluster + 7, kCluster});
  EXPECT_TRUE(extent.packed());
  EXPECT_EQ(extent.codec.skip, 7u);
  EXPECT_EQ(extent.guest.length, kCluster - 7);
  EXPECT_EQ(layer_->used_clusters(), 2u);
  ASSERT_TRUE(layer_->Discard({kCluster, 3 * kCluster}, Kind::kHole));
  EXPECT_EQ(layer_->used_clusters(), 0u);
}

TEST_F(ToyLayerTest, SaysWhenItIsFull) {
  Open({.size = 10 * kCluster, .host_limit = 1});
  Fill(0);
  EXPECT_EQ(layer_->Reserve({kCluster, 1}).error().code(), Code::kNoSpace);
}

}  // namespace
}  // namespace platter
