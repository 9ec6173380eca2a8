#include "cow/disk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "formats/format.h"
#include "io/engine/engine.h"
#include "io/iov.h"
#include "io/memory_store.h"
#include "io/testing/toy_layer.h"
#include "io/testing/wrapper_layer.h"
#include "io/testing/wrapper_store.h"

namespace platter {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Images in memory, from which a test stacks a disk. Everything below the top is a toy with 4 KiB
// clusters unless the test says otherwise.
class DiskTest : public testing::Test {
 protected:
  struct Spec {
    uint64_t size;
    std::map<uint64_t, std::pair<uint64_t, char>> data;  // at: length, byte
    uint32_t cluster = 4096;
  };

  // The top first. All but the last have parents; the last says kParent as well if `dangling`.
  std::unique_ptr<Disk> Make(const std::vector<Spec>& specs, bool dangling = false) {
    stores_.clear();
    std::vector<std::unique_ptr<Layer>> layers;
    for (size_t i = 0; i < specs.size(); ++i) {
      ToyLayer::Options options{.size = specs[i].size,
                                .cluster = specs[i].cluster,
                                .has_parent = dangling || i + 1 < specs.size()};
      stores_.push_back(std::make_unique<MemoryStore>());
      EXPECT_TRUE(ToyLayer::Create(*stores_[i], options).has_value());
      auto layer = ToyLayer::Open(*stores_[i], options);
      EXPECT_TRUE(layer.has_value()) << layer.error().text();
      for (auto [at, run] : specs[i].data) {
        std::string bytes(run.first, run.second);
        EXPECT_TRUE(Write(**layer, at, AsBytes(std::string_view(bytes))).has_value());
      }
      layers.push_back(std::move(*layer));
    }
    return Disk::FromLayers(std::move(layers));
  }

  // "data/0 4096+8192" for each extent: kind, depth, where.
  static std::vector<std::string> MapOf(Disk& disk, Range want, size_t room = 64) {
    std::vector<std::string> lines;
    while (!want.empty()) {
      std::vector<Extent> extents(room);
      auto count = disk.Map(want, extents);
      if (!count) return {count.error().text()};
      for (const Extent& e : std::span(extents).first(*count)) {
        EXPECT_EQ(e.guest.offset, want.offset);
        static constexpr const char* kNames[] = {"data", "zero", "hole", "parent"};
        lines.push_back(fmt::format("{}/{} {}+{}", kNames[static_cast<int>(e.kind)], e.depth,
                                    e.guest.offset, e.guest.length));
        want = Range::FromTo(e.guest.end(), want.end());
      }
    }
    return lines;
  }

  static std::string ReadText(Layer& layer, uint64_t at, size_t length) {
    std::string text(length, '?');
    auto read = Read(layer, at, std::as_writable_bytes(std::span(text)));
    EXPECT_TRUE(read.has_value()) << read.error().text();
    return text;
  }

  std::vector<std::unique_ptr<MemoryStore>> stores_;
};

constexpr uint64_t kCluster = 4096;

TEST_F(DiskTest, OneLayer) {
  auto disk = Make({{4 * kCluster, {{kCluster, {kCluster, 'a'}}}}}, /*dangling=*/true);
  EXPECT_EQ(disk->depth(), 1u);
  EXPECT_EQ(disk->info().size, 4 * kCluster);
  EXPECT_THAT(MapOf(*disk, {0, 4 * kCluster}),
              ElementsAre("hole/0 0+4096", "data/0 4096+4096", "hole/0 8192+8192"));
}

TEST_F(DiskTest, EachLayerAnswersForWhatItHolds) {
  auto disk = Make({{6 * kCluster, {{kCluster, {kCluster, 'a'}}}},
                    {6 * kCluster, {{kCluster, {2 * kCluster, 'b'}}}},
                    {6 * kCluster, {{0, {4 * kCluster, 'c'}}}}});
  EXPECT_THAT(MapOf(*disk, {0, 6 * kCluster}),
              ElementsAre("data/2 0+4096", "data/0 4096+4096", "data/1 8192+4096",
                          "data/2 12288+4096", "hole/2 16384+8192"));
  EXPECT_EQ(ReadText(*disk, 0, 6 * kCluster),
            std::string(kCluster, 'c') + std::string(kCluster, 'a') + std::string(kCluster, 'b') +
                std::string(kCluster, 'c') + std::string(2 * kCluster, '\0'));
  EXPECT_THAT(MapOf(*disk, {kCluster + 100, kCluster}),
              ElementsAre("data/0 4196+3996", "data/1 8192+100"));
}

TEST_F(DiskTest, ASmallArrayIsAPrefix) {
  auto disk =
      Make({{8 * kCluster, {{2 * kCluster, {kCluster, 'a'}}, {6 * kCluster, {kCluster, 'a'}}}},
            {8 * kCluster, {{0, {kCluster, 'b'}}, {4 * kCluster, {kCluster, 'b'}}}}});
  auto whole = MapOf(*disk, {0, 8 * kCluster});
  for (size_t room : {1, 2, 3, 5}) EXPECT_EQ(MapOf(*disk, {0, 8 * kCluster}, room), whole) << room;
}

TEST_F(DiskTest, ASmallerParentEndsInAHole) {
  auto disk = Make({{4 * kCluster, {}}, {kCluster + 512, {{0, {kCluster + 512, 'b'}}}}});
  EXPECT_THAT(MapOf(*disk, {0, 4 * kCluster}), ElementsAre("data/1 0+4608", "hole/1 4608+11776"));
  EXPECT_THAT(MapOf(*disk, {2 * kCluster, 10}), ElementsAre("hole/1 8192+10"));
  EXPECT_EQ(ReadText(*disk, kCluster + 510, 4), std::string("bb\0\0", 4));
}

TEST_F(DiskTest, ALargerParentIsCutOff) {
  auto disk = Make({{2 * kCluster, {}}, {8 * kCluster, {{0, {8 * kCluster, 'b'}}}}});
  EXPECT_EQ(disk->info().size, 2 * kCluster);
  EXPECT_THAT(MapOf(*disk, {0, 2 * kCluster}), ElementsAre("data/1 0+8192"));
  std::array<Extent, 1> extent;
  EXPECT_EQ(disk->Map({2 * kCluster, 1}, extent).error().code(), Code::kOutOfRange);
  EXPECT_EQ(disk->TryMap({2 * kCluster, 1}, extent), 0u);
}

TEST_F(DiskTest, AParentSmallerThanItsOwnParent) {
  auto disk =
      Make({{4 * kCluster, {}}, {kCluster, {}}, {4 * kCluster, {{0, {4 * kCluster, 'c'}}}}});
  EXPECT_THAT(MapOf(*disk, {0, 4 * kCluster}), ElementsAre("data/2 0+4096", "hole/1 4096+12288"));
}

TEST_F(DiskTest, WritesGoToTheTopAndKeepTheRest) {
  auto disk = Make({{4 * kCluster, {}}, {2 * kCluster + 100, {{0, {2 * kCluster + 100, 'b'}}}}});
  std::string before = std::string(2 * kCluster + 100, 'b') + std::string(2 * kCluster - 100, '\0');
  for (uint64_t at : {uint64_t{10}, kCluster - 1, 2 * kCluster + 98, 3 * kCluster}) {
    ASSERT_TRUE(Write(*disk, at, AsBytes(std::string_view("XYZ"))).has_value());
    before.replace(at, 3, "XYZ");
  }
  EXPECT_TRUE(ReadText(*disk, 0, 4 * kCluster) == before);
  EXPECT_TRUE(ReadText(disk->layer(1), 0, 2 * kCluster) == std::string(2 * kCluster, 'b'));
}

TEST_F(DiskTest, TryMapNeedsEveryLayer) {
  auto disk =
      Make({{4 * kCluster, {{0, {kCluster, 'a'}}}}, {4 * kCluster, {{0, {4 * kCluster, 'b'}}}}});
  std::array<Extent, 4> extents;
  ASSERT_EQ(disk->TryMap({0, 4 * kCluster}, extents), 2u);
  EXPECT_EQ(extents[1].depth, 1);

  // A layer that would have to wait ends the plan where it is asked.
  class Waits : public WrapperLayer {
   public:
    using WrapperLayer::WrapperLayer;
    size_t TryMap(Range, std::span<Extent>) override { return 0; }
  };
  std::vector<std::unique_ptr<Layer>> layers;
  layers.push_back(std::make_unique<Waits>(disk->layer(1)));
  auto below = Disk::FromLayers(std::move(layers));
  EXPECT_EQ(below->TryMap({0, kCluster}, extents), 0u);
  layers.clear();
  class Top : public WrapperLayer {
    using WrapperLayer::WrapperLayer;
  };
  layers.push_back(std::make_unique<Top>(disk->layer(0)));
  layers.push_back(std::make_unique<Waits>(disk->layer(1)));
  auto stacked = Disk::FromLayers(std::move(layers));
  ASSERT_EQ(stacked->TryMap({0, 4 * kCluster}, extents), 1u);
  EXPECT_EQ(extents[0].guest, (Range{0, kCluster}));
}

// What the top layer of a disk is asked to leave.
class Recorder : public WrapperLayer {
 public:
  using WrapperLayer::WrapperLayer;
  Result<Range> Discard(Range want, Kind leave) override {
    asked.push_back(leave);
    return base_.Discard(want, leave);
  }
  std::vector<Kind> asked;
};

TEST_F(DiskTest, HolesOverParentsBecomeZeros) {
  auto disk =
      Make({{4 * kCluster, {{0, {4 * kCluster, 'a'}}}}, {2 * kCluster, {{0, {kCluster, 'b'}}}}});
  auto recorder = std::make_unique<Recorder>(disk->layer(0));
  Recorder& top = *recorder;
  std::vector<std::unique_ptr<Layer>> layers;
  layers.push_back(std::move(recorder));
  layers.push_back(std::make_unique<WrapperLayer>(disk->layer(1)));
  auto seen = Disk::FromLayers(std::move(layers));

  EXPECT_EQ(*seen->Discard({0, 2 * kCluster}, Kind::kHole), (Range{0, 2 * kCluster}));
  EXPECT_EQ(*seen->Discard({2 * kCluster, kCluster}, Kind::kHole), (Range{2 * kCluster, kCluster}));
  EXPECT_EQ(*seen->Discard({3 * kCluster, kCluster}, Kind::kZero), (Range{3 * kCluster, kCluster}));
  EXPECT_THAT(top.asked, ElementsAre(Kind::kZero, Kind::kParent, Kind::kZero));
  EXPECT_EQ(ReadText(*seen, 0, 4 * kCluster), std::string(4 * kCluster, '\0'));
  EXPECT_TRUE(seen->Discard({0, kCluster}, Kind::kParent).has_value());
  EXPECT_EQ(ReadText(*seen, 0, 1), "b");
  EXPECT_FALSE(seen->Discard({3 * kCluster, 2 * kCluster}, Kind::kHole).has_value());
}

// A top layer that grows.
class Growing : public WrapperLayer, public Resizer {
 public:
  Growing(Layer& base, uint64_t size) : WrapperLayer(base), info_(base.info()) {
    info_.size = size;
  }
  const Info& info() const override { return info_; }
  Resizer* resizer() override { return this; }
  Result<> Resize(uint64_t size, Preallocation) override {
    info_.size = size;
    return {};
  }

 private:
  Info info_;
};

TEST_F(DiskTest, GrowingShowsZerosAndNotTheParent) {
  auto disk = Make({{8 * kCluster, {}}, {6 * kCluster, {{0, {6 * kCluster, 'b'}}}}});
  std::vector<std::unique_ptr<Layer>> layers;
  layers.push_back(std::make_unique<Growing>(disk->layer(0), 2 * kCluster));
  layers.push_back(std::make_unique<WrapperLayer>(disk->layer(1)));
  auto small = Disk::FromLayers(std::move(layers));
  ASSERT_TRUE(small->resizer()->Resize(8 * kCluster, Preallocation::kOff).has_value());
  EXPECT_EQ(ReadText(*small, 0, 8 * kCluster),
            std::string(2 * kCluster, 'b') + std::string(6 * kCluster, '\0'));
  EXPECT_EQ(disk->resizer(), nullptr) << "a toy has none";
}

// Random chains against flat arrays.
// Where the parents hold nothing, a fresh unit of the top reads as they do without being written.
TEST_F(DiskTest, AWriteOverNothingWritesNothingElse) {
  struct Counter final : WrapperStore {
    using Store::Write;
    using WrapperStore::WrapperStore;
    Result<> Write(uint64_t at, std::span<const iovec> from) override {
      written += IovLength(from);
      return base_.Write(at, from);
    }
    uint64_t written = 0;
  };
  constexpr uint64_t kUnit = 64 * kKiB;
  const Format& qcow2 = **FindFormat("qcow2");
  MemoryStore base, top;
  ASSERT_TRUE(qcow2.create(base, {.size = 4 * kUnit}).has_value());
  CreateOptions overlay{.size = 4 * kUnit};
  overlay.parent = Reference{Reference::kParent, "below", "qcow2"};
  ASSERT_TRUE(qcow2.create(top, overlay).has_value());
  Counter counter(top);
  std::vector<std::unique_ptr<Layer>> layers;
  for (Store* store : {static_cast<Store*>(&counter), static_cast<Store*>(&base)}) {
    layers.push_back(
        qcow2.open(std::make_unique<WrapperStore>(*store), {.writable = true}).value());
  }
  std::vector<std::byte> bytes(kUnit, std::byte{1}), expected(4 * kUnit);
  ASSERT_TRUE(Write(*layers[1], 0, ConstBytes(bytes)).has_value());
  std::ranges::copy(bytes, expected.begin());
  auto disk = Disk::FromLayers(std::move(layers));

  std::ranges::fill(bytes, std::byte{2});
  // The end of what there is and some of what there is not; then nothing but that.
  const std::map<uint64_t, uint64_t> all = {{kUnit - 100, kUnit + 900}, {2 * kUnit + 77, 1000}};
  for (auto [at, written] : all) {
    counter.written = 0;
    const ConstBytes data = ConstBytes(bytes).first(1000);
    ASSERT_TRUE(Write(*disk, at, data).has_value());
    EXPECT_EQ(counter.written, written) << at;
    std::ranges::copy(data, expected.begin() + static_cast<ptrdiff_t>(at));
  }
  std::vector<std::byte> got(expected.size());
  ASSERT_TRUE(Read(*disk, 0, Bytes(got)).has_value());
  EXPECT_EQ(got, expected);
}

TEST_F(DiskTest, RandomChains) {
  for (unsigned seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    auto below = [&](uint64_t limit) { return random() % limit; };
    std::vector<Spec> specs(1 + below(5));
    for (Spec& spec : specs) {
      spec.size = 512 + below(16 * kCluster);
      spec.cluster = 512u << below(4);
      for (size_t runs = below(6); runs > 0; --runs) {
        uint64_t at = below(spec.size);
        spec.data[at] = {1 + below(std::min<uint64_t>(spec.size - at, 9000)),
                         static_cast<char>('a' + below(26))};
      }
    }
    // What each layer reads as, the last first.
    std::string expected;
    for (auto spec = specs.rbegin(); spec != specs.rend(); ++spec) {
      expected.resize(spec->size, '\0');
      // A toy cluster that is partly written is zeros elsewhere: the layer was filled on its own.
      std::string mine(spec->size, '\0');
      std::vector<bool> held(spec->size);
      for (auto [at, run] : spec->data) {
        mine.replace(at, run.first, std::string(run.first, run.second));
        Range clusters = Range{at, run.first}.Outward(spec->cluster).Intersect({0, spec->size});
        std::fill_n(held.begin() + static_cast<ptrdiff_t>(clusters.offset), clusters.length, true);
      }
      for (size_t i = 0; i < spec->size; ++i) {
        if (held[i]) expected[i] = mine[i];
      }
    }
    auto disk = Make(specs);
    ASSERT_TRUE(ReadText(*disk, 0, expected.size()) == expected);
    auto whole = MapOf(*disk, {0, expected.size()});
    EXPECT_EQ(MapOf(*disk, {0, expected.size()}, 1 + below(3)), whole);
    for (int i = 0; i < 20; ++i) {
      uint64_t at = below(expected.size());
      std::string bytes(1 + below(std::min<uint64_t>(expected.size() - at, 5000)), 'Z');
      ASSERT_TRUE(Write(*disk, at, AsBytes(std::string_view(bytes))).has_value());
      expected.replace(at, bytes.size(), bytes);
      uint64_t zero_at = below(expected.size());
      uint64_t zeros = 1 + below(std::min<uint64_t>(expected.size() - zero_at, 9000));
      ASSERT_TRUE(Zero(*disk, {zero_at, zeros}, below(2) == 0).has_value());
      expected.replace(zero_at, zeros, std::string(zeros, '\0'));
    }
    ASSERT_TRUE(ReadText(*disk, 0, expected.size()) == expected);
  }
}

}  // namespace
}  // namespace platter
