// The model drivers over all configurations: what is written is read, whatever fails or loses
// power, and the image stays sound.
#include <gtest/gtest.h>

#include "formats/vdi/vdi_testing.h"
#include "tests/model/fault.h"
#include "tests/model/model.h"
#include "tests/model/power_cut.h"
#include "tests/model/resize.h"

namespace platter::vdi {
namespace {

using model::Plan;

class VdiModel : public testing::TestWithParam<Configuration> {};

TEST_P(VdiModel, OneThread) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    ASSERT_TRUE(
        RunModel(SubjectOf(GetParam()), Plan::FromEnvironment({.seed = seed, .operations = 300})));
  }
}

TEST_P(VdiModel, ManyThreads) {
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    ASSERT_TRUE(
        RunParallelModel(SubjectOf(GetParam()),
                         Plan::FromEnvironment({.seed = seed, .operations = 200, .threads = 4})));
  }
}

TEST_P(VdiModel, Faults) {
  if (GetParam().size > kMiB) return;  // "many slices" says nothing more here, and takes minutes
  ASSERT_TRUE(RunFaults(SubjectOf(GetParam()), Plan{.seed = 11, .operations = 20}));
}

TEST_P(VdiModel, PowerCuts) {
  if (GetParam().size > kMiB) return;
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    ASSERT_TRUE(RunPowerCuts(SubjectOf(GetParam()), Plan{.seed = seed, .operations = 20}));
  }
}

TEST_P(VdiModel, Resizes) {
  const uint64_t size = GetParam().size;
  if (size > kMiB) return;
  // Version 0 has no room for a longer map.
  std::vector<uint64_t> sizes = {size / 2, 512, size - 100, size / 3, 0, 700};
  if (GetParam().image.major > 0) sizes.insert(sizes.begin(), {size + 512, 5 * size, 900 * size});
  ASSERT_TRUE(RunResizes(SubjectOf(GetParam()), sizes, {.seed = 21}));
}

TEST_P(VdiModel, ResizesAllOrNothing) {
  const uint64_t size = GetParam().size;
  if (size > kMiB) return;
  std::vector<uint64_t> sizes = {size / 2, 512};
  if (GetParam().image.major > 0) sizes.insert(sizes.end(), {size + 512, 30 * size, 900 * size});
  ASSERT_TRUE(RunResizePowerCuts(SubjectOf(GetParam()), sizes, {.seed = 23}));
}

INSTANTIATE_TEST_SUITE_P(Configurations, VdiModel, testing::ValuesIn(Configurations()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           for (char& c : name)
                             c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace platter::vdi
