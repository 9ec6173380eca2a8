// The drivers over all configurations: what is written is read, whatever fails or loses power.
#include <gtest/gtest.h>

#include "formats/vhdx/vhdx_subjects_testing.h"
#include "tests/model/fault.h"
#include "tests/model/model.h"
#include "tests/model/power_cut.h"
#include "tests/model/resize.h"

namespace platter::vhdx {
namespace {

class VhdxModel : public testing::TestWithParam<Configuration> {};

TEST_P(VhdxModel, OneThread) {
  model::Subject subject = SubjectOf(GetParam());
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    ASSERT_TRUE(RunModel(subject, model::Plan::FromEnvironment({.seed = seed, .operations = 300})));
  }
}

TEST_P(VhdxModel, ManyThreads) {
  model::Subject subject = SubjectOf(GetParam());
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    model::Plan plan{.seed = seed, .operations = 300, .threads = 4};
    ASSERT_TRUE(RunParallelModel(subject, model::Plan::FromEnvironment(plan)));
  }
}

TEST_P(VhdxModel, Faults) {
  model::Subject subject = SubjectOf(GetParam());
  ASSERT_TRUE(RunFaults(subject, model::Plan::FromEnvironment({.seed = 12, .operations = 20})));
}

TEST_P(VhdxModel, PowerCuts) {
  model::Subject subject = SubjectOf(GetParam());
  for (uint64_t seed = 11; seed <= 12; ++seed) {
    ASSERT_TRUE(
        RunPowerCuts(subject, model::Plan::FromEnvironment({.seed = seed, .operations = 12})));
  }
}

TEST_P(VhdxModel, Resizes) {
  const uint64_t size = RoundDown(GetParam().size, 4096);
  const uint64_t sizes[] = {size + 4096, 3 * size, size / 2, 4096, size / 4 + 4096, kGiB};
  std::vector<uint64_t> aligned;
  for (uint64_t each : sizes) aligned.push_back(RoundUp(each, 4096));
  ASSERT_TRUE(RunResizes(SubjectOf(GetParam()), aligned, {.seed = 21}));
}

TEST_P(VhdxModel, ResizesAllOrNothing) {
  const uint64_t size = RoundDown(GetParam().size, 4096);
  const uint64_t sizes[] = {size + 4096, 2 * size, RoundUp(size / 2, 4096)};
  ASSERT_TRUE(RunResizePowerCuts(SubjectOf(GetParam()), sizes, {.seed = 23}));
}

// The BAT has a MiB, which is 131072 entries: with more it moves.
TEST(VhdxResize, TheBatMovesAllOrNothing) {
  const Configuration dynamic{"dynamic", kMiB + 512, 256 * kKiB, {{"block_size", "1M"}}};
  const uint64_t sizes[] = {140000 * kMiB};
  ASSERT_TRUE(RunResizePowerCuts(SubjectOf(dynamic), sizes, {.seed = 24}));
}

INSTANTIATE_TEST_SUITE_P(Configurations, VhdxModel, testing::ValuesIn(Configurations()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           for (char& c : name) {
                             c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace platter::vhdx
