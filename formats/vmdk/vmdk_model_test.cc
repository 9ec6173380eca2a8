// The drivers of tests/model over images in one file: what is written is read, whatever fails; and
// after a power cut at any moment the image is sound and holds what was flushed.
#include <gtest/gtest.h>

#include "formats/vmdk/vmdk_testing.h"
#include "tests/model/fault.h"
#include "tests/model/model.h"
#include "tests/model/power_cut.h"

namespace platter::vmdk {
namespace {

using model::Plan;

std::vector<model::Subject> Subjects() {
  return {
      SubjectOf("sparse", 20 * 64 * kKiB + 3 * 512, {}),
      SubjectOf("with zeroed grains", 40 * 64 * kKiB, {{"zeroed_grain", "on"}}),
  };
}

TEST(VmdkModel, OneThread) {
  for (const model::Subject& subject : Subjects()) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      ASSERT_TRUE(RunModel(subject, Plan::FromEnvironment({.seed = seed, .operations = 300})))
          << subject.name;
    }
  }
}

TEST(VmdkModel, ManyThreads) {
  for (const model::Subject& subject : Subjects()) {
    Plan plan{.seed = 1, .operations = 200, .threads = 4};
    ASSERT_TRUE(RunParallelModel(subject, Plan::FromEnvironment(plan))) << subject.name;
  }
}

TEST(VmdkModel, EveryCallMayFail) {
  for (const model::Subject& subject : Subjects()) {
    ASSERT_TRUE(RunFaults(subject, Plan::FromEnvironment({.seed = 3, .operations = 12})))
        << subject.name;
  }
}

TEST(VmdkModel, PowerCuts) {
  for (const model::Subject& subject : Subjects()) {
    ASSERT_TRUE(RunPowerCuts(subject, Plan::FromEnvironment({.seed = 5, .operations = 25})))
        << subject.name;
  }
}

}  // namespace
}  // namespace platter::vmdk
