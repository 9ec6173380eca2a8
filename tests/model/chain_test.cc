// The model over chains: what a disk reads as does not depend on which of its layers answers.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "cow/disk.h"
#include "formats/format.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/toy_layer.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/model.h"

namespace platter::model {
namespace {

// An image below the top: made once, opened for reading each time the chain is.
struct Parent {
  std::string format;
  uint64_t size;
  std::map<std::string, std::string> options;
  std::vector<Range> data;  // guest bytes that hold something
};

struct Built {
  std::string format;
  std::shared_ptr<MemoryStore> store;
};

Result<std::unique_ptr<Layer>> OpenLayer(const std::string& format, Store& store, bool writable) {
  return TRY(FindFormat(format))
      ->open(std::make_unique<WrapperStore>(store), {.writable = writable});
}

CreateOptions Creation(uint64_t size, std::map<std::string, std::string> options, bool overlay) {
  CreateOptions create{.size = size, .options = std::move(options)};
  if (overlay) create.parent = Reference{Reference::kParent, "below", "raw"};
  return create;
}

// `parents`, the highest first; random bytes where they hold data. `initial` becomes what the chain
// of them reads as, `size` bytes.
std::vector<Built> BuildParents(const std::vector<Parent>& parents, uint64_t size,
                                std::vector<std::byte>& initial) {
  Random random(parents.size());
  std::vector<Built> built(parents.size());
  for (size_t i = parents.size(); i-- > 0;) {
    const Parent& parent = parents[i];
    built[i] = {parent.format, std::make_shared<MemoryStore>()};
    bool overlay = i + 1 < parents.size();
    auto create = Creation(parent.size, parent.options, overlay);
    CHECK((*FindFormat(parent.format))->create(*built[i].store, create).has_value());
    std::vector<std::unique_ptr<Layer>> layers;
    for (size_t j = i; j < parents.size(); ++j) {
      auto layer = OpenLayer(built[j].format, *built[j].store, j == i);
      CHECK(layer.has_value());
      layers.push_back(std::move(*layer));
    }
    auto disk = Disk::FromLayers(std::move(layers));
    for (Range range : parent.data) {
      std::vector<std::byte> bytes(range.length);
      random.Fill(bytes);
      CHECK(Write(*disk, range.offset, ConstBytes(bytes)).has_value());
    }
    CHECK(disk->Flush().has_value());
    if (i > 0) continue;
    initial.assign(size, std::byte{0});
    CHECK(Read(*disk, 0, Bytes(initial).first(std::min(size, parent.size))).has_value());
  }
  return built;
}

Subject Chain(std::string name, uint64_t size, std::map<std::string, std::string> options,
              const std::vector<Parent>& parents) {
  Subject subject;
  subject.name = std::move(name);
  subject.size = size;
  subject.unit = 4096;
  auto built = BuildParents(parents, size, subject.initial);
  subject.create = [=](Store& store) {
    return (*FindFormat("qcow2"))->create(store, Creation(size, options, true));
  };
  subject.open = [=](Store& store) -> Result<std::unique_ptr<Layer>> {
    std::vector<std::unique_ptr<Layer>> layers;
    layers.push_back(TRY(OpenLayer("qcow2", store, true)));
    for (const Built& parent : built) {
      layers.push_back(TRY(OpenLayer(parent.format, *parent.store, false)));
    }
    return Disk::FromLayers(std::move(layers));
  };
  subject.check = [](Store& store) -> Result<bool> {
    auto report = TRY((*FindFormat("qcow2"))->check(store, {}, {}));
    return report.corruptions == 0 && report.errors == 0;
  };
  return subject;
}

Subject Raw() {
  Subject subject;
  subject.name = "raw";
  subject.size = 300'077;
  subject.unit = 4096;
  subject.create = [](Store& store) {
    return (*FindFormat("raw"))->create(store, {.size = 300'077});
  };
  subject.open = [](Store& store) { return OpenLayer("raw", store, true); };
  return subject;
}

Subject ToyOverToy() {
  Subject subject;
  subject.name = "toy over toy";
  subject.size = 50 * 4096;
  subject.unit = 4096;
  const ToyLayer::Options below{.size = 33 * 4096 + 100, .cluster = 1024};
  const ToyLayer::Options above{.size = subject.size, .cluster = 4096, .has_parent = true};
  auto base = std::make_shared<MemoryStore>();
  CHECK(ToyLayer::Create(*base, below).has_value());
  subject.initial.resize(subject.size);
  Random(7).Fill(Bytes(subject.initial).first(below.size));
  {
    auto layer = ToyLayer::Open(*base, below);
    CHECK(layer.has_value());
    CHECK(Write(**layer, 0, ConstBytes(subject.initial).first(below.size)).has_value());
    CHECK((*layer)->Flush().has_value());
  }
  subject.create = [=](Store& store) { return ToyLayer::Create(store, above); };
  subject.open = [=](Store& store) -> Result<std::unique_ptr<Layer>> {
    std::vector<std::unique_ptr<Layer>> layers;
    layers.push_back(TRY(ToyLayer::Open(store, above)));
    layers.push_back(TRY(ToyLayer::Open(*base, below)));
    return Disk::FromLayers(std::move(layers));
  };
  subject.check = [=](Store& store) { return ToyLayer::Check(store, above); };
  return subject;
}

std::vector<Subject> Subjects() {
  const uint64_t size = 400'384;  // no multiple of a cluster
  const std::map<std::string, std::string> small{{"cluster_size", "4096"}};
  const Parent raw{"raw", 300'001, {}, {{0, 70'000}, {131'072, 5000}, {299'000, 1001}}};
  const Parent longer{"raw", 2 * size, {}, {{0, 2 * size}}};
  const Parent middle{
      "qcow2", 250'368, {{"cluster_size", "512"}}, {{4096, 10'000}, {200'000, 50'368}}};
  return {
      Raw(),
      ToyOverToy(),
      Chain("qcow2 over a shorter raw", size, small, {raw}),
      Chain("qcow2 over a longer raw", size, {{"cluster_size", "65536"}}, {longer}),
      Chain("qcow2 v2, which cannot say zero", size, {{"cluster_size", "4096"}, {"compat", "0.10"}},
            {raw}),
      Chain("qcow2 with subclusters", size, {{"cluster_size", "16384"}, {"extended_l2", "on"}},
            {raw}),
      Chain("qcow2 over qcow2 over raw", size, small, {middle, raw}),
      Chain("qcow2 over a short qcow2 over a long raw", size, small, {middle, longer}),
  };
}

class ChainModel : public testing::TestWithParam<size_t> {
 protected:
  const Subject subject_ = std::move(Subjects()[GetParam()]);
};

TEST_P(ChainModel, OneThread) {
  for (uint64_t seed = 1; seed <= 15; ++seed) {
    ASSERT_TRUE(RunModel(subject_, Plan::FromEnvironment({.seed = seed, .operations = 200})));
  }
}

TEST_P(ChainModel, ManyThreads) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    Plan plan{.seed = seed, .operations = 200, .threads = 4};
    ASSERT_TRUE(RunParallelModel(subject_, Plan::FromEnvironment(plan)));
  }
}

INSTANTIATE_TEST_SUITE_P(Chains, ChainModel, testing::Range<size_t>(0, Subjects().size()),
                         [](const auto& info) {
                           const std::string title = Subjects()[info.param].name;
                           std::string name;
                           for (char c : title) {
                             if (std::isalnum(static_cast<unsigned char>(c))) name += c;
                           }
                           return name;
                         });

}  // namespace
}  // namespace platter::model
