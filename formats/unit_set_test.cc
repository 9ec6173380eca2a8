#include "formats/unit_set.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace platter {
namespace {

std::vector<Range> Runs(const UnitSet& set) {
  std::vector<Range> runs;
  for (Range run = set.Next(0); !run.empty(); run = set.Next(run.end())) {
    if (!runs.empty() && runs.back().end() == run.offset) {
      runs.back().length += run.length;
    } else {
      runs.push_back(run);
    }
  }
  return runs;
}

TEST(UnitSet, IsEmptyAtFirst) {
  UnitSet set;
  EXPECT_EQ(set.count(), 0u);
  EXPECT_FALSE(set.Has(0));
  EXPECT_TRUE(set.Next(0).empty());
}

TEST(UnitSet, RunsAcrossBlocks) {
  UnitSet set;
  set.Add({65530, 2 * 65536});
  set.Add({0, 64});
  set.Add({uint64_t{1} << 50, 1});
  set.Add({10, 20});  // once more
  EXPECT_EQ(set.count(), 2u * 65536 + 64 + 1);
  EXPECT_EQ(Runs(set), (std::vector<Range>{{0, 64}, {65530, 2 * 65536}, {uint64_t{1} << 50, 1}}));
  EXPECT_EQ(set.Next(63), (Range{63, 1}));
  EXPECT_TRUE(set.Has(65536));  // of a block that is full
  EXPECT_TRUE(set.Has(uint64_t{1} << 50));
  EXPECT_FALSE(set.Has(65529));
  EXPECT_FALSE(set.Has(64));
}

TEST(UnitSet, AgreesWithAFlatArray) {
  std::minstd_rand random(3);
  for (int round = 0; round < 20; ++round) {
    constexpr uint64_t kUnits = 200'000;
    std::vector<bool> model(kUnits);
    UnitSet set;
    for (int i = 0; i < 200; ++i) {
      uint64_t first = random() % kUnits;
      uint64_t length = random() % (i % 10 == 0 ? 70'000 : 200);
      length = std::min(length, kUnits - first);
      set.Add({first, length});
      std::fill_n(model.begin() + static_cast<ptrdiff_t>(first), length, true);
    }
    std::vector<Range> runs;
    uint64_t count = 0;
    for (uint64_t i = 0; i < kUnits; ++i) {
      ASSERT_EQ(set.Has(i), model[i]) << i;
      if (!model[i]) continue;
      ++count;
      if (!runs.empty() && runs.back().end() == i) {
        ++runs.back().length;
      } else {
        runs.push_back({i, 1});
      }
    }
    ASSERT_EQ(set.count(), count);
    ASSERT_EQ(Runs(set), runs);
  }
}

}  // namespace
}  // namespace platter
