// The drivers over all configurations: what is written is read, whatever fails or loses power.
#include <gtest/gtest.h>

#include "formats/vhd/vhd_subjects_testing.h"
#include "tests/model/fault.h"
#include "tests/model/model.h"
#include "tests/model/power_cut.h"
#include "tests/model/resize.h"

namespace platter::vhd {
namespace {

class VhdModel : public testing::TestWithParam<Configuration> {};

TEST_P(VhdModel, OneThread) {
  model::Subject subject = SubjectOf(GetParam());
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    ASSERT_TRUE(RunModel(subject, model::Plan::FromEnvironment({.seed = seed, .operations = 400})));
  }
}

TEST_P(VhdModel, ManyThreads) {
  model::Subject subject = SubjectOf(GetParam());
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    model::Plan plan{.seed = seed, .operations = 300, .threads = 4};
    ASSERT_TRUE(RunParallelModel(subject, model::Plan::FromEnvironment(plan)));
  }
}

TEST_P(VhdModel, Faults) {
  model::Subject subject = SubjectOf(GetParam());
  ASSERT_TRUE(RunFaults(subject, model::Plan::FromEnvironment({.seed = 12, .operations = 20})));
}

TEST_P(VhdModel, PowerCuts) {
  model::Subject subject = SubjectOf(GetParam());
  for (uint64_t seed = 11; seed <= 12; ++seed) {
    ASSERT_TRUE(
        RunPowerCuts(subject, model::Plan::FromEnvironment({.seed = seed, .operations = 25})));
  }
}

TEST_P(VhdModel, Resizes) {
  const uint64_t size = GetParam().size;
  const uint64_t half = RoundUp(size / 2, 512);
  const uint64_t sizes[] = {size + 512, 2 * size + 1024, 90 * size, half, 1536, 2 * half + 512};
  ASSERT_TRUE(RunResizes(SubjectOf(GetParam()), sizes, {.seed = 21}));
}

TEST_P(VhdModel, ResizesAllOrNothing) {
  const uint64_t size = GetParam().size;
  std::vector<uint64_t> sizes = {RoundUp(size / 2, 512), 512};
  // Growing a fixed disk hangs on the file system; see vhd_fixed.cc.
  if (GetParam().options.contains("block_size")) {
    sizes.insert(sizes.end(), {size + 512, 3 * size, 90 * size});
    ASSERT_TRUE(RunResizeFaults(SubjectOf(GetParam()), sizes, {.seed = 22}));
  }
  ASSERT_TRUE(RunResizePowerCuts(SubjectOf(GetParam()), sizes, {.seed = 23}));
}

INSTANTIATE_TEST_SUITE_P(Configurations, VhdModel, testing::ValuesIn(Configurations()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           for (char& c : name) {
                             c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace platter::vhd
