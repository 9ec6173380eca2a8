// Resizing disks of each kind, in both directions, also when power or calls fail.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/vmdk/vmdk_descriptor.h"
#include "formats/vmdk/vmdk_layer.h"
#include "formats/vmdk/vmdk_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/resize.h"

namespace platter::vmdk {
namespace {

constexpr uint64_t kGrain = 64 * kKiB, kSpan = 512 * kGrain;  // of a grain, of a grain table
constexpr uint64_t kSize = 9 * kGrain + 3 * kSector;

// Within the last grain, behind it, in another table, in another sector of the directory; and back.
constexpr uint64_t kSizes[] = {kSize + 1024,
                               kSize + kGrain,
                               2 * kSpan + 512,
                               150 * kSpan + 5120,
                               kSpan + kGrain,
                               5 * kGrain + 512,
                               kSector,
                               3 * kGrain - 512,
                               0,
                               7 * kGrain};

std::vector<model::Subject> Subjects() {
  return {SubjectOf("sparse", kSize, {}),
          SubjectOf("with zeroed grains", kSize, {{"zeroed_grain", "on"}}),
          SubjectOf("with a parent", kSize, {{"zeroed_grain", "on"}}, /*parent=*/true)};
}

TEST(VmdkResize, KeepsContentAndShowsZeros) {
  for (const model::Subject& subject : Subjects()) {
    ASSERT_TRUE(RunResizes(subject, kSizes, {.seed = 1}));
  }
}

TEST(VmdkResize, PowerCuts) {
  const uint64_t sizes[] = {kSize + 1024, 2 * kSpan, 150 * kSpan, 5 * kGrain + 512, 512};
  for (const model::Subject& subject : Subjects()) {
    ASSERT_TRUE(RunResizePowerCuts(subject, sizes, {.seed = 2}));
  }
}

TEST(VmdkResize, EveryCallMayFail) {
  const uint64_t sizes[] = {kSize + kGrain, 150 * kSpan, 5 * kGrain + 512};
  for (const model::Subject& subject : Subjects()) {
    ASSERT_TRUE(RunResizeFaults(subject, sizes, {.seed = 3}));
  }
}

// The text that a test reads back.
std::string TextOf(Store& store, uint64_t offset) {
  std::string text(1024, '\0');
  text.resize(std::min<uint64_t>(text.size(), *store.Size() - offset));
  EXPECT_TRUE(store.Read(offset, std::as_writable_bytes(std::span(text))));
  return text.substr(0, text.find('\0'));
}

TEST(VmdkResize, TheDescriptorSaysItToo) {
  TestImage image;
  ASSERT_TRUE(image.Create(100 * kMiB, {}));
  const uint64_t length = *image.store.Size();
  for (uint64_t size : {5 * kGiB, 100 * kMiB, 3 * kMiB}) {
    auto layer = image.Open(true);
    ASSERT_TRUE(layer) << layer.error().text();
    ASSERT_TRUE((*layer)->resizer()->Resize(size, Preallocation::kOff));
    layer->reset();
    auto d = ParseDescriptor(TextOf(image.store, kSector));
    ASSERT_TRUE(d) << d.error().text();
    EXPECT_EQ(d->sectors(), size / kSector);
    EXPECT_EQ(d->Ddb("geometry.cylinders"), std::to_string(size / kSector / (16 * 63)));
    EXPECT_EQ(d->Ddb("virtualHWVersion"), "4");
  }
  // Larger directories and their tables are there; the copy of the descriptor is not.
  EXPECT_LT(*image.store.Size(), length + 2 * kMiB);
}

// In several files: the power fails in both at once.
class VmdkResizeApart : public testing::TestWithParam<const char*> {
 protected:
  struct Files {
    std::unique_ptr<MemoryStore> text, data;
    NamedStores others;
    Result<std::unique_ptr<Layer>> Open(bool writable) {
      OpenOptions options;
      options.writable = writable;
      options.opener = &others;
      return OpenVmdk(std::make_unique<WrapperStore>(*text), options);
    }
  };

  std::string Extent() const {
    const std::string subformat = GetParam();
    return subformat == "monolithicFlat"       ? "a-flat.vmdk"
           : subformat == "twoGbMaxExtentFlat" ? "a-f001.vmdk"
                                               : "a-s001.vmdk";
  }
};

TEST_P(VmdkResizeApart, OldSizeOrNew) {
  TestImage image;
  ASSERT_TRUE(image.Create(kSize, {{"subformat", GetParam()}}));
  std::vector<std::byte> content = Noise(kSize, 1);
  {
    auto layer = image.Open(true);
    ASSERT_TRUE(layer) << layer.error().text();
    ASSERT_TRUE(Write(**layer, 0, content));
    ASSERT_TRUE((*layer)->Flush());
  }
  auto& data = dynamic_cast<MemoryStore&>(*image.files.Find(Extent()));
  for (uint64_t size : {kSize + 512, 20 * kMiB, 2 * kGrain + 512, uint64_t{512}}) {
    CrashRecorder recorder;
    auto text = recorder.NewStore(image.store), extent = recorder.NewStore(data);
    {
      NamedStores others;
      others.Lend(Extent(), *extent);
      OpenOptions options;
      options.writable = true;
      options.opener = &others;
      auto layer = OpenVmdk(std::make_unique<WrapperStore>(*text), options);
      ASSERT_TRUE(layer) << layer.error().text();
      auto resized = (*layer)->resizer()->Resize(size, Preallocation::kOff);
      ASSERT_TRUE(resized) << resized.error().text();
      EXPECT_EQ((*layer)->info().size, size);
    }
    uint64_t seen = 0;
    for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
      for (uint64_t state = 0; state < 6; ++state) {
        SCOPED_TRACE(
            fmt::format("{}: cut {} of {}, state {}", size, cut, recorder.boundary(), state));
        Files files{recorder.Crash(cut, state, 0), recorder.Crash(cut, state, 1), {}};
        files.others.Lend(Extent(), *files.data);
        auto layer = files.Open(false);
        ASSERT_TRUE(layer) << layer.error().text();
        const uint64_t now = (*layer)->info().size;
        ASSERT_TRUE(now == kSize || now == size) << now;
        seen |= now == size ? 2 : 1;
        std::vector<std::byte> want = content, got = *Content(**layer);
        want.resize(now);
        if (now > size) {
          // What is to be dropped may be gone.
          std::fill(got.begin() + static_cast<ptrdiff_t>(size), got.end(), std::byte{0});
          std::fill(want.begin() + static_cast<ptrdiff_t>(size), want.end(), std::byte{0});
        }
        ASSERT_TRUE(got == want);
      }
    }
    EXPECT_EQ(seen, 3u);
  }
}

INSTANTIATE_TEST_SUITE_P(Subformats, VmdkResizeApart,
                         testing::Values("monolithicFlat", "twoGbMaxExtentFlat",
                                         "twoGbMaxExtentSparse"),
                         [](const auto& info) { return info.param; });

TEST(VmdkResize, WhatCannotBeResizedIsRefusedByName) {
  auto refusal = [](uint64_t size, const Options& options, uint64_t wanted,
                    Preallocation preallocation = Preallocation::kOff, bool fresh = false) {
    TestImage image;
    EXPECT_TRUE(image.Create(size, options));
    auto layer = image.Open(true, fresh);
    EXPECT_TRUE(layer) << layer.error().text();
    auto resized = (*layer)->resizer()->Resize(wanted, preallocation);
    EXPECT_EQ((*layer)->info().size, size);
    return resized ? "no error" : resized.error().text();
  };
  using testing::HasSubstr;
  const Options stream{{"subformat", "streamOptimized"}};
  EXPECT_THAT(refusal(kMiB, stream, 2 * kMiB), HasSubstr("streamOptimized"));
  EXPECT_THAT(refusal(kMiB, stream, 2 * kMiB, Preallocation::kOff, true),
              HasSubstr("streamOptimized"));
  const Options split{{"subformat", "twoGbMaxExtentSparse"}};
  EXPECT_THAT(refusal(kMiB, split, 3 * kGiB), HasSubstr("the last extent, from guest offset 0"));
  EXPECT_THAT(refusal(3 * kGiB, split, kGiB), HasSubstr("only the last extent"));
  EXPECT_THAT(refusal(kMiB, {}, 2 * kMiB, Preallocation::kFull), HasSubstr("preallocation"));
  EXPECT_THAT(refusal(kMiB, {}, 65 * kTiB), HasSubstr("would be longer"));
  EXPECT_THAT(refusal(kMiB, {{"subformat", "monolithicFlat"}}, 2 * kMiB, Preallocation::kMetadata),
              HasSubstr("metadata"));
}

// Sizes in a descriptor file change without moving the rest of it.
TEST(VmdkResize, RoomInTheDescriptorFile) {
  const std::string text =
      "# Disk DescriptorFile\nversion=1\nCID=12345678\n# Extents\nRW 8 FLAT \"x\" 0\nddb.a = "
      "\"1\"\n";
  auto resized = [](const std::string& from, uint64_t sectors) {
    auto to = WithLastExtentInPlace(*ParseDescriptor(from), sectors);
    if (!to) return to.error().text();
    EXPECT_EQ(to->size(), from.size());
    EXPECT_EQ(ParseDescriptor(*to)->sectors(), sectors);
    return *to;
  };
  const std::string larger = resized(text, 12345);
  EXPECT_NE(larger.find("# Ext\nRW 12345 FLAT"), larger.npos) << larger;
  const std::string smaller = resized(larger, 77);
  EXPECT_NE(smaller.find("RW 77    FLAT"), smaller.npos) << smaller;
  EXPECT_EQ(resized(smaller, 12345), larger);
  EXPECT_NE(resized(text, 12345678901234).find("no room"), std::string::npos);
}

}  // namespace
}  // namespace platter::vmdk
