#include "io/fault_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <vector>

#include "io/memory_store.h"

namespace platter {
namespace {

std::vector<std::byte> Fill(size_t size, int value) {
  return std::vector<std::byte>(size, std::byte(value));
}

TEST(FaultStore, CountsAndFailsNothingByDefault) {
  FaultPlan plan;
  FaultStore store(std::make_unique<MemoryStore>(), plan);
  ASSERT_TRUE(store.Write(0, Fill(10, 1)).has_value());
  ASSERT_TRUE(store.Sync().has_value());
  EXPECT_FALSE(plan.fired());
  EXPECT_EQ(plan.calls(), 2u);
}

TEST(FaultStore, TheKthCallOfAKindFailsOnce) {
  FaultPlan plan(1, FaultPlan::kWrite | FaultPlan::kSync, ENOSPC);
  FaultStore store(std::make_unique<MemoryStore>(10), plan);
  auto bytes = Fill(10, 1);
  ASSERT_TRUE(store.Write(0, bytes).has_value());
  ASSERT_TRUE(store.Read(0, bytes).has_value());
  Result<> failed = store.Sync();
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code(), Code::kNoSpace);
  EXPECT_TRUE(plan.fired());
  EXPECT_TRUE(store.Sync().has_value());
}

TEST(FaultStore, ForEverUntilDisarmed) {
  FaultPlan plan(0, FaultPlan::kAny, EIO, true);
  FaultStore store(std::make_unique<MemoryStore>(10), plan);
  auto bytes = Fill(10, 1);
  EXPECT_FALSE(store.Size().has_value());
  EXPECT_FALSE(store.Read(0, bytes).has_value());
  EXPECT_FALSE(store.FindRun(0).has_value());
  EXPECT_FALSE(store.Allocate(Range{0, 1}).has_value());
  EXPECT_FALSE(store.Resize(5).has_value());
  EXPECT_FALSE(store.Sync().has_value());
  plan.Disarm();
  EXPECT_EQ(*store.Size(), 10u);
  EXPECT_TRUE(store.Read(0, bytes).has_value());
}

TEST(FaultStore, FailedWritesMayHaveHappenedInPart) {
  std::set<size_t> written;
  for (uint64_t k = 0; k < 3; ++k) {
    FaultPlan plan(k, FaultPlan::kWrite);
    auto inner = std::make_unique<MemoryStore>(100);
    MemoryStore& memory = *inner;
    FaultStore store(std::move(inner), plan);
    for (uint64_t i = 0; i < k; ++i) ASSERT_TRUE(store.Write(99, Fill(1, 0)).has_value());
    EXPECT_FALSE(store.Write(0, Fill(10, 1)).has_value());
    auto contents = memory.Contents();
    written.insert(std::ranges::count(contents, std::byte{1}));
  }
  EXPECT_EQ(written, (std::set<size_t>{0, 5, 10}));
}

}  // namespace
}  // namespace platter
