// The drivers on the toy layer: they find nothing wrong with the engine and the contract's
// reference, and they do find what is broken on purpose.
#include <gtest/gtest.h>

#include "base/check.h"
#include "io/codec/cipher.h"
#include "io/testing/toy_layer.h"
#include "tests/model/fault.h"
#include "tests/model/model.h"
#include "tests/model/power_cut.h"

namespace platter::model {
namespace {

Subject Toy(std::string name, ToyLayer::Options options) {
  Subject subject;
  subject.name = std::move(name);
  subject.size = options.size;
  subject.unit = options.cluster;
  subject.create = [=](Store& store) { return ToyLayer::Create(store, options); };
  subject.open = [=](Store& store) -> Result<std::unique_ptr<Layer>> {
    return TRY(ToyLayer::Open(store, options));
  };
  subject.check = [=](Store& store) { return ToyLayer::Check(store, options); };
  return subject;
}

const Cipher& TestCipher() {
  static const auto cipher =
      Cipher::Create(Cipher::Mode::kXts, Cipher::Iv::kPlain64, Cipher::Tweak::kHost,
                     Secret(AsBytes(std::string_view("0123456789abcdef0123456789ABCDEF"))));
  CHECK(cipher);
  return **cipher;
}

std::vector<Subject> Subjects() {
  return {
      Toy("plain", {.size = 40 * 4096}),
      Toy("small clusters, ragged end",
          {.size = 60 * 512 + 77, .cluster = 512, .reserve_limit = 3}),
      Toy("overlay", {.size = 40 * 4096, .has_parent = true}),
      Toy("encrypted", {.size = 40 * 4096, .cipher = &TestCipher()}),
      Toy("deflate", {.size = 40 * 4096 + 100, .compression = Codec::kDeflate}),
      Toy("zstd", {.size = 40 * 4096, .reserve_limit = 2, .compression = Codec::kZstd}),
  };
}

TEST(ToyModel, OneThread) {
  for (const Subject& subject : Subjects()) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      ASSERT_TRUE(RunModel(subject, Plan::FromEnvironment({.seed = seed, .operations = 300})));
    }
  }
}

TEST(ToyModel, ManyThreads) {
  for (const Subject& subject : Subjects()) {
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      Plan plan{.seed = seed, .operations = 300, .threads = 4};
      ASSERT_TRUE(RunParallelModel(subject, Plan::FromEnvironment(plan)));
    }
  }
}

TEST(ToyModel, Faults) {
  for (const Subject& subject : Subjects()) {
    ASSERT_TRUE(RunFaults(subject, Plan::FromEnvironment({.seed = 3, .operations = 25})));
  }
}

TEST(ToyModel, PowerCuts) {
  for (const Subject& subject : Subjects()) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      ASSERT_TRUE(RunPowerCuts(subject, Plan::FromEnvironment({.seed = seed, .operations = 30})));
    }
  }
}

// Whether some seed shows that the layer is broken.
bool PowerCutsFind(ToyLayer::Break broken) {
  Subject subject = Toy("broken", {.size = 20 * 4096, .broken = broken});
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    if (!RunPowerCuts(subject, {.seed = seed, .operations = 30})) return true;
  }
  return false;
}

TEST(ToyModel, BrokenLayersAreFound) {
  EXPECT_TRUE(PowerCutsFind(ToyLayer::Break::kNoBarrier));
  EXPECT_TRUE(PowerCutsFind(ToyLayer::Break::kNoQuarantine));
  // Publishing before the data is there shows as soon as a write fails.
  Subject early = Toy("early", {.size = 20 * 4096, .broken = ToyLayer::Break::kPublishEarly});
  EXPECT_FALSE(RunFaults(early, {.seed = 3, .operations = 40}));
}

}  // namespace
}  // namespace platter::model
