#include "io/unit_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "io/memory_store.h"

namespace platter {
namespace {

class UnitCacheTest : public testing::Test {
 protected:
  // A unit at `host`, as a map names it.
  Extent At(uint64_t host, Store* store = nullptr) {
    Extent extent;
    extent.kind = Kind::kData;
    extent.store = store ? store : &store_;
    extent.host = {host, 100};
    extent.codec = {.id = Codec::kDeflate, .unit = 4096};
    return extent;
  }
  static UnitCache::Unit Unit(size_t size, int value = 1) {
    auto unit = std::make_shared<Buffer>(size);
    std::memset(unit->data(), value, size);
    return unit;
  }
  // What two flushes do to pins that nobody holds any more.
  void Advance() { EXPECT_TRUE(pins_.Reached(pins_.Now() - 1)); }

  MemoryStore store_, other_;
  PinSet pins_;
  UnitCache cache_;
};

TEST_F(UnitCacheTest, KnowsAUnitByItsHostBytes) {
  Pin pin = pins_.Hold();
  UnitCache::Unit unit = Unit(4096);
  EXPECT_EQ(cache_.Find(At(1000), pin), nullptr);
  cache_.Put(At(1000), pin, unit);
  EXPECT_EQ(cache_.Find(At(1000), pin), unit);
  EXPECT_EQ(cache_.Find(At(1001), pin), nullptr);
  EXPECT_EQ(cache_.Find(At(1000, &other_), pin), nullptr);
  Extent longer = At(1000);
  longer.host.length = 101;
  EXPECT_EQ(cache_.Find(longer, pin), nullptr);
}

TEST_F(UnitCacheTest, AnswersPinsOfItsEpochAndBeforeOnly) {
  Pin early = pins_.Hold();
  Advance();
  Pin now = pins_.Hold();
  ASSERT_GT(now.epoch(), early.epoch());
  UnitCache::Unit unit = Unit(4096);
  cache_.Put(At(0), now, unit);
  EXPECT_EQ(cache_.Find(At(0), early), unit);
  EXPECT_EQ(cache_.Find(At(0), now), unit);
  early = Pin();
  Advance();
  Pin later = pins_.Hold();
  ASSERT_GT(later.epoch(), now.epoch());
  EXPECT_EQ(cache_.Find(At(0), later), nullptr);
}

TEST_F(UnitCacheTest, ALaterUnitStaysInPlaceOfAnEarlierOne) {
  Pin early = pins_.Hold();
  Advance();
  Pin late = pins_.Hold();
  UnitCache::Unit unit = Unit(4096);
  cache_.Put(At(0), late, unit);
  cache_.Put(At(0), early, Unit(4096));
  EXPECT_EQ(cache_.Find(At(0), late), unit);
  UnitCache::Unit same_epoch = Unit(4096);
  cache_.Put(At(0), late, same_epoch);
  EXPECT_EQ(cache_.Find(At(0), late), same_epoch);
}

TEST_F(UnitCacheTest, AnEmptyPinIsOfALayerThatFreesNothing) {
  cache_.Put(At(0), Pin(), Unit(10));
  EXPECT_NE(cache_.Find(At(0), Pin()), nullptr);
}

TEST_F(UnitCacheTest, ForgetsWhatNobodyAskedForLongest) {
  Pin pin = pins_.Hold();
  for (uint64_t i = 0; i < UnitCache::kMostUnits; ++i) cache_.Put(At(i), pin, Unit(512));
  EXPECT_NE(cache_.Find(At(0), pin), nullptr);
  cache_.Put(At(100), pin, Unit(512));
  EXPECT_NE(cache_.Find(At(0), pin), nullptr);
  EXPECT_EQ(cache_.Find(At(1), pin), nullptr);
  EXPECT_NE(cache_.Find(At(2), pin), nullptr);
}

TEST_F(UnitCacheTest, HoldsBoundedMemory) {
  Pin pin = pins_.Hold();
  constexpr size_t kThird = UnitCache::kMostBytes / 3;
  std::vector<std::weak_ptr<const Buffer>> units;
  for (uint64_t i = 0; i < 10; ++i) {
    UnitCache::Unit unit = Unit(kThird);
    units.push_back(unit);
    cache_.Put(At(i), pin, std::move(unit));
  }
  EXPECT_EQ(std::ranges::count_if(units, [](const auto& unit) { return !unit.expired(); }), 3);
  cache_.Put(At(50), pin, Unit(UnitCache::kMostBytes + 1));
  EXPECT_EQ(cache_.Find(At(50), pin), nullptr);
  EXPECT_NE(cache_.Find(At(9), pin), nullptr) << "what is too large drives nothing out";
}

TEST_F(UnitCacheTest, ManyThreads) {
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t i = 0; i < 5000; ++i) {
        Pin pin = pins_.Hold();
        uint64_t host = (i * 7 + static_cast<uint64_t>(thread)) % 24;
        if (UnitCache::Unit unit = cache_.Find(At(host), pin)) {
          EXPECT_EQ(unit->bytes()[511], static_cast<std::byte>(host));
        } else {
          cache_.Put(At(host), pin, Unit(512, static_cast<int>(host)));
        }
        if (i % 50 == 0) pins_.Reached(pins_.Now() - 1);
      }
    });
  }
}

}  // namespace
}  // namespace platter
