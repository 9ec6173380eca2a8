// Power cuts while a disk grows over a longer parent: the old size, or the new one with zeros in
// the new part. What the parent holds there is never seen.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cow/disk.h"
#include "formats/format.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"

namespace platter::model {
namespace {

constexpr uint64_t kOld = 200'192, kNew = 500'224, kParent = 400'000;  // bytes

struct Case {
  std::string name;
  std::map<std::string, std::string> options;
  std::vector<Range> written;  // guest bytes that the image itself holds
};

class GrowOver : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    std::vector<std::byte> bytes(kParent, std::byte{'p'});
    ASSERT_TRUE(parent_.Store::Write(0, bytes));
    CreateOptions create{.size = kOld, .options = GetParam().options};
    create.parent = Reference{Reference::kParent, "parent", "raw"};
    ASSERT_TRUE((*FindFormat("qcow2"))->create(image_, create));
    auto disk = Open(image_, true);
    ASSERT_TRUE(disk) << disk.error().text();
    before_.assign(kOld, std::byte{'p'});
    for (Range range : GetParam().written) {
      std::vector<std::byte> own(range.length, std::byte{'o'});
      ASSERT_TRUE(Write(**disk, range.offset, ConstBytes(own)));
      std::ranges::copy(own, before_.begin() + static_cast<ptrdiff_t>(range.offset));
    }
    ASSERT_TRUE((*disk)->Flush());
  }

  Result<std::unique_ptr<Disk>> Open(Store& image, bool writable) {
    std::vector<std::unique_ptr<Layer>> layers;
    layers.push_back(
        TRY((*FindFormat("qcow2"))
                ->open(std::make_unique<WrapperStore>(image), {.writable = writable})));
    layers.push_back(TRY((*FindFormat("raw"))->open(std::make_unique<WrapperStore>(parent_), {})));
    return Disk::FromLayers(std::move(layers));
  }

  // The size, and true if the content is right for it.
  testing::AssertionResult IsOldOrNew(Store& image, uint64_t& size) {
    auto report = (*FindFormat("qcow2"))->check(image, {}, {});
    if (!report) return testing::AssertionFailure() << report.error().text();
    if (report->corruptions + report->errors > 0) {
      return testing::AssertionFailure() << report->findings[0].text;
    }
    auto disk = Open(image, false);
    if (!disk) return testing::AssertionFailure() << disk.error().text();
    size = (*disk)->info().size;
    if (size != kOld && size != kNew) return testing::AssertionFailure() << size << " bytes";
    std::vector<std::byte> want = before_, got(size);
    want.resize(size);
    auto read = Read(**disk, 0, Bytes(got));
    if (!read) return testing::AssertionFailure() << read.error().text();
    auto [difference, _] = std::ranges::mismatch(got, want);
    if (difference == got.end()) return testing::AssertionSuccess();
    return testing::AssertionFailure()
           << "of " << size << " bytes differs that at " << difference - got.begin();
  }

  MemoryStore parent_, image_;
  std::vector<std::byte> before_;
};

TEST_P(GrowOver, PowerCuts) {
  for (Preallocation mode : {Preallocation::kOff, Preallocation::kMetadata}) {
    CrashRecorder recorder;
    auto store = recorder.NewStore(image_);
    {
      auto disk = Open(*store, true);
      ASSERT_TRUE(disk) << disk.error().text();
      auto grown = (*disk)->resizer()->Resize(kNew, mode);
      ASSERT_TRUE(grown) << grown.error().text();
    }
    uint64_t sizes_seen = 0;
    for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
      for (uint64_t variant = 0; variant < 6; ++variant) {
        auto image = recorder.Crash(cut, variant);
        uint64_t size = 0;
        ASSERT_TRUE(IsOldOrNew(*image, size)) << "cut after event " << cut << " of "
                                              << recorder.boundary() << ", variant " << variant;
        sizes_seen |= size == kOld ? 1 : 2;
        if (cut == recorder.boundary()) {
          ASSERT_EQ(size, kNew);
        }
      }
    }
    EXPECT_EQ(sizes_seen, 3u);
  }
}

// What an interrupted growth left past the end does not come to light later.
TEST_P(GrowOver, AgainAfterAPowerCut) {
  CrashRecorder recorder;
  auto store = recorder.NewStore(image_);
  {
    auto disk = Open(*store, true);
    ASSERT_TRUE(disk && (*disk)->resizer()->Resize(kNew, Preallocation::kOff));
  }
  for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
    auto image = recorder.Crash(cut, 1);
    {
      auto disk = Open(*image, true);
      ASSERT_TRUE(disk) << disk.error().text();
      auto grown = (*disk)->resizer()->Resize(kNew, Preallocation::kOff);
      ASSERT_TRUE(grown) << grown.error().text();
    }
    uint64_t size = 0;
    ASSERT_TRUE(IsOldOrNew(*image, size)) << "cut after event " << cut;
    ASSERT_EQ(size, kNew);
  }
}

std::vector<Case> Cases() {
  const std::vector<Range> end{{kOld - 700, 700}}, middle{{70'000, 5000}};
  std::vector<Case> cases;
  for (const auto& [name, options] : std::map<std::string, std::map<std::string, std::string>>{
           {"Version3", {{"cluster_size", "4096"}}},
           {"SmallClusters", {{"cluster_size", "512"}}},
           {"LargeClusters", {{"cluster_size", "65536"}}},
           {"Version2", {{"cluster_size", "4096"}, {"compat", "0.10"}}},
           {"Subclusters", {{"cluster_size", "65536"}, {"extended_l2", "on"}}}}) {
    cases.push_back({name + "Empty", options, {}});
    cases.push_back({name + "WithEnd", options, end});
    cases.push_back({name + "WithMiddle", options, middle});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Overlays, GrowOver, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace platter::model
