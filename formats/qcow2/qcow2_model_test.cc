// The model driver over all configurations: what is written is read, and the image stays sound.
#include <gtest/gtest.h>

#include "formats/qcow2/qcow2_subjects_testing.h"
#include "tests/model/model.h"

namespace platter::qcow2 {
namespace {

class Qcow2Model : public testing::TestWithParam<Configuration> {};

TEST_P(Qcow2Model, OneThread) {
  model::Subject subject = SubjectOf(GetParam());
  for (uint64_t seed = 1; seed <= (GetParam().encrypted ? 3 : 10); ++seed) {
    ASSERT_TRUE(RunModel(subject, model::Plan::FromEnvironment({.seed = seed, .operations = 400})));
  }
}

TEST_P(Qcow2Model, ManyThreads) {
  model::Subject subject = SubjectOf(GetParam());
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    model::Plan plan{.seed = seed, .operations = 300, .threads = 4};
    ASSERT_TRUE(RunParallelModel(subject, model::Plan::FromEnvironment(plan)));
  }
}

// What a snapshot shares is copied before it changes.
TEST(Qcow2ModelSnapshot, StaysAsItWas) {
  for (const Configuration& configuration : SnapshotConfigurations()) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      model::Subject subject = SubjectOf(configuration);
      subject.check = [&](Store& image) -> Result<bool> {
        auto layer = TRY(OpenImage(configuration, image, nullptr, false, "s"));
        std::vector<std::byte> got(configuration.size);
        TRY(Read(*layer, 0, Bytes(got)));
        return got == configuration.snapshot && TRY(IsSound(image));
      };
      ASSERT_TRUE(
          RunModel(subject, model::Plan::FromEnvironment({.seed = seed, .operations = 400})));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Configurations, Qcow2Model, testing::ValuesIn(Configurations()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           for (char& c : name)
                             c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace platter::qcow2
