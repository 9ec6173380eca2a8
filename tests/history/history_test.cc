// Five hundred operations and more on chains of mixed formats, in turn by us and by QEMU's
// programs: the disk, its snapshots and every image of the chain are as the model says.
#include "tests/history/history.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/interop/qemu.h"

namespace platter::history {
namespace {

uint64_t FirstSeed() {
  const char* seed = std::getenv("PLATTER_MODEL_SEED");
  return seed ? std::strtoull(seed, nullptr, 10) : 1;
}

class HistoryTest : public testing::TestWithParam<Setup> {};

TEST_P(HistoryTest, IsAsTheModelSays) {
  constexpr int kOperations = 550, kBetweenJudgements = 40;
  const uint64_t seed = FirstSeed();
  fmt::print("seed {} (PLATTER_MODEL_SEED)\n", seed);
  testing_support::TempFolder folder;
  Machine machine(folder.File("."), GetParam());
  Model model;
  Random random(seed);
  auto made = machine.Create(random, model);
  ASSERT_TRUE(made.has_value()) << made.error().text();
  for (int i = 1; i <= kOperations; ++i) {
    const Op op = model.Pick(random, GetParam());
    auto done = machine.Do(op);
    ASSERT_TRUE(done.has_value()) << "seed " << seed << ", operation " << i << ", " << op.ToText()
                                  << ": " << done.error().text();
    model.Do(op);
    if (i % kBetweenJudgements != 0 && i != kOperations) continue;
    auto wrong = machine.Judge(model);
    ASSERT_TRUE(wrong.has_value()) << "seed " << seed << ", after operation " << i << ", "
                                   << op.ToText() << ": " << wrong.error().text();
    ASSERT_EQ(*wrong, "") << "seed " << seed << ", after operation " << i << ", " << op.ToText();
    auto tidy = machine.Tidy();
    ASSERT_TRUE(tidy.has_value()) << tidy.error().text();
  }
}

INSTANTIATE_TEST_SUITE_P(Chains, HistoryTest, testing::ValuesIn(Setups()), [](const auto& info) {
  std::string name;
  for (char c : info.param.name) {
    if (std::isalnum(static_cast<unsigned char>(c))) name += c;
  }
  return name;
});

}  // namespace
}  // namespace platter::history
