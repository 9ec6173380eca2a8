// Images written by hand from the specification: what they read as, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "formats/vdi/vdi.h"
#include "formats/vdi/vdi_create.h"
#include "formats/vdi/vdi_parse.h"
#include "formats/vdi/vdi_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"

namespace platter::vdi {
namespace {

using testing::HasSubstr;

// Two blocks of data behind a map that has them in the other order, between zeros.
HandMade Simple() {
  return {.size = 5 * 4096,
          .map = {1, 0xffffffff, 0, 0xfffffffe, 0xffffffff},
          .allocated = 2,
          .data = Pattern(2 * 4096, 7)};
}

// What Simple() reads as, cut to `size`.
std::vector<std::byte> SimpleContent(size_t size) {
  std::vector<std::byte> data = Pattern(2 * 4096, 7), content(5 * 4096);
  std::copy_n(data.begin() + 4096, 4096, content.begin());
  std::copy_n(data.begin(), 4096, content.begin() + 2 * 4096);
  content.resize(size);
  return content;
}

std::string ErrorOf(const HandMade& image, bool writable = false) {
  MemoryStore store(image.Bytes());
  auto layer = Open(store, writable);
  return layer.has_value() ? std::string() : layer.error().text();
}

std::vector<std::byte> ContentOf(const HandMade& image) {
  MemoryStore store(image.Bytes());
  auto layer = Open(store, false);
  EXPECT_TRUE(layer.has_value()) << layer.error().text();
  if (!layer.has_value()) return {};
  auto bytes = ReadAll(**layer);
  EXPECT_TRUE(bytes.has_value()) << bytes.error().text();
  return bytes.has_value() ? *bytes : std::vector<std::byte>();
}

Kind KindAt(Layer& layer, uint64_t at) {
  Extent extent;
  auto count = layer.Map({at, 1}, std::span(&extent, 1));
  EXPECT_TRUE(count.has_value()) << count.error().text();
  return extent.kind;
}

TEST(VdiImage, Version1ReadsAsItsMapSays) {
  EXPECT_EQ(ContentOf(Simple()), SimpleContent(5 * 4096));
  HandMade short_header = Simple();
  short_header.header_size = 384;
  short_header.minor = 0;
  EXPECT_EQ(ContentOf(short_header), SimpleContent(5 * 4096));
}

TEST(VdiImage, Version0ReadsAsItsMapSays) {
  HandMade image = Simple();
  image.major = 0;
  EXPECT_EQ(ContentOf(image), SimpleContent(5 * 4096));
  MemoryStore store(image.Bytes());
  auto layer = Open(store, false);
  ASSERT_TRUE(layer.has_value());
  EXPECT_EQ((*layer)->info().identity.id, "01010101-0101-0101-0101-010101010101");
  EXPECT_EQ((*layer)->info().identity.version, "02020202-0202-0202-0202-020202020202");
}

TEST(VdiImage, OddSizesEndWhereTheyEnd) {
  for (uint64_t size : {4 * 4096 + 1, 4 * 4096 + 511, 5 * 4096 - 1}) {
    HandMade image = Simple();
    image.size = size;
    EXPECT_EQ(ContentOf(image), SimpleContent(size)) << size;
  }
  EXPECT_EQ(ContentOf(HandMade{.size = 0}), std::vector<std::byte>());
}

TEST(VdiImage, ExtraDataLiesInFrontOfEachBlock) {
  HandMade image = Simple();
  image.block_extra = 512;
  std::vector<std::byte> blocks = std::move(image.data);
  image.data = Pattern(2 * 4608, 99);
  std::copy_n(blocks.begin(), 4096, image.data.begin() + 512);
  std::copy_n(blocks.begin() + 4096, 4096, image.data.begin() + 4608 + 512);
  EXPECT_EQ(ContentOf(image), SimpleContent(5 * 4096));
}

TEST(VdiImage, BlocksNeedNotBeAPowerOfTwo) {
  HandMade image{.size = 7000,
                 .block_size = 1536,
                 .map = {4, 3, 2, 1, 0},
                 .allocated = 5,
                 .data = Pattern(5 * 1536, 3)};
  std::vector<std::byte> expected;
  for (int block = 4; block >= 0; --block) {
    expected.insert(expected.end(), image.data.begin() + block * 1536,
                    image.data.begin() + (block + 1) * 1536);
  }
  expected.resize(7000);
  EXPECT_EQ(ContentOf(image), expected);
}

TEST(VdiImage, DifferencingAndUndoAskTheParent) {
  for (uint32_t type : {3u, 4u}) {
    for (uint16_t major : {uint16_t{0}, uint16_t{1}}) {
      HandMade image = Simple();
      image.type = type;
      image.major = major;
      image.parent = 8;
      image.parent_modification = 9;
      MemoryStore store(image.Bytes());
      auto layer = Open(store);
      ASSERT_TRUE(layer.has_value()) << layer.error().text();
      EXPECT_EQ(KindAt(**layer, 0), Kind::kData);
      EXPECT_EQ(KindAt(**layer, 4096), Kind::kParent);
      EXPECT_EQ(KindAt(**layer, 3 * 4096), Kind::kZero) << "discarded: hides the parent";
      ASSERT_EQ((*layer)->info().references.size(), 1u);
      const Reference& parent = (*layer)->info().references[0];
      EXPECT_EQ(parent.name, "");
      EXPECT_EQ(parent.format, "vdi");
      EXPECT_EQ(parent.id, "08080808-0808-0808-0808-080808080808");
      // Version 0 does not record which state of the parent it was made on.
      EXPECT_EQ(parent.versions.size(), major == 0 ? 0u : 1u);
      ASSERT_TRUE((*layer)->Discard({0, 4096}, Kind::kHole).has_value());
      EXPECT_EQ(KindAt(**layer, 0), Kind::kZero);
      ASSERT_TRUE((*layer)->Discard({0, 4096}, Kind::kParent).has_value());
      EXPECT_EQ(KindAt(**layer, 0), Kind::kParent);
    }
  }
}

TEST(VdiImage, HeadersThatMakeNoSenseAreRefused) {
  auto changed = [](auto change) {
    HandMade image = Simple();
    change(image);
    return ErrorOf(image);
  };
  EXPECT_THAT(changed([](HandMade& i) { i.major = 2; }), HasSubstr("version 2.1"));
  EXPECT_THAT(changed([](HandMade& i) { i.header_size = 383; }), HasSubstr("383 bytes"));
  EXPECT_THAT(changed([](HandMade& i) { i.type = 0; }), HasSubstr("image type 0"));
  EXPECT_THAT(changed([](HandMade& i) { i.type = 5; }), HasSubstr("image type 5"));
  EXPECT_THAT(changed([](HandMade& i) { i.sector_size = 4096; }), HasSubstr("sectors of 4096"));
  EXPECT_THAT(changed([](HandMade& i) { i.block_size = 0; }), HasSubstr("blocks of 0"));
  EXPECT_THAT(changed([](HandMade& i) { i.block_size = 4097; }), HasSubstr("blocks of 4097"));
  EXPECT_THAT(changed([](HandMade& i) { i.size = 5 * 4096 + 1; }), HasSubstr("5 blocks"));
  EXPECT_THAT(changed([](HandMade& i) { i.size = uint64_t{1} << 63; }), HasSubstr("too large"));
  EXPECT_THAT(changed([](HandMade& i) { i.map_offset = 471; }), HasSubstr("lies in the header"));
  EXPECT_THAT(changed([](HandMade& i) { i.map_offset = 1005; }), HasSubstr("inside the block map"));
  EXPECT_THAT(changed([](HandMade& i) { i.type = 4; }), HasSubstr("names no parent"));
  EXPECT_THAT(changed([](HandMade& i) { i.parent = 5; }), HasSubstr("05050505"));
}

TEST(VdiImage, ShortFilesAreRefused) {
  const std::vector<std::byte> whole = Simple().Bytes();
  for (size_t length = 0; length < 532; ++length) {
    MemoryStore store(ConstBytes(whole).first(length));
    EXPECT_FALSE(Open(store, false).has_value()) << length;
  }
}

// A map of 2 GiB that is not there costs neither memory nor time.
TEST(VdiImage, MapsPastTheEndAreRefused) {
  std::vector<std::byte> bytes = Simple().Bytes();
  StoreAt(bytes, 384, le32(0x1fffff00));
  StoreAt(bytes, 344, le32(0x80000000));
  MemoryStore store(bytes);
  auto layer = Open(store, false);
  ASSERT_FALSE(layer.has_value());
  EXPECT_THAT(layer.error().text(), HasSubstr("reaches past the end of the file"));
}

// What is missing has been cut off: it is not read as zeros, and such an image is not written.
TEST(VdiImage, DataPastTheEndIsAnError) {
  HandMade image = Simple();
  image.data.resize(4096 + 1000);
  MemoryStore store(image.Bytes());
  auto layer = Open(store, false);
  ASSERT_TRUE(layer.has_value());
  std::vector<std::byte> bytes(1000);
  EXPECT_TRUE(Read(**layer, 0, Bytes(bytes)).has_value());
  auto past = Read(**layer, 1000, Bytes(bytes).first(1));
  ASSERT_FALSE(past.has_value());
  EXPECT_THAT(past.error().text(), HasSubstr("block 0 is in host block 1"));
  EXPECT_EQ(past.error().code(), Code::kCorrupt);
  // Written, it would become longer, and zeros would stand for what is missing.
  EXPECT_THAT(ErrorOf(image, true), HasSubstr("reaches past the end of the file"));

  image = Simple();
  image.map[0] = 0x80000000;
  EXPECT_THAT(ErrorOf(image, true), HasSubstr("past the end of the file"));
  image.map[0] = 0;
  EXPECT_THAT(ErrorOf(image, true), HasSubstr("another one"));
  EXPECT_EQ(ErrorOf(image, false), "");
}

TEST(VdiImage, TheFirstChangeGivesANewModificationId) {
  MemoryStore store(Simple().Bytes());
  const std::vector<std::byte> before = store.Contents();
  std::vector<std::byte> byte(1, std::byte{77});
  {
    auto layer = Open(store);
    ASSERT_TRUE(layer.has_value());
    ASSERT_TRUE((*layer)->Flush().has_value());
  }
  EXPECT_EQ(store.Contents(), before) << "opened for writing and never written";
  for (uint64_t at : {uint64_t{0}, uint64_t{4096}}) {  // in place, and in a new block
    MemoryStore copy(before);
    {
      auto layer = Open(copy);
      ASSERT_TRUE(layer.has_value());
      ASSERT_TRUE(Write(**layer, at, ConstBytes(byte)).has_value());
    }
    auto header = ParseHeader(copy.Contents());
    ASSERT_TRUE(header.has_value());
    EXPECT_NE(GuidText(header->modification), "02020202-0202-0202-0202-020202020202");
    EXPECT_EQ(GuidText(header->id), "01010101-0101-0101-0101-010101010101");
  }
}

TEST(VdiImage, ClosingLeavesNoHoles) {
  MemoryStore store(Simple().Bytes());
  {
    auto layer = Open(store);
    ASSERT_TRUE(layer.has_value());
    // Host block 0 comes free, and 1 takes its place.
    ASSERT_TRUE((*layer)->Discard({2 * 4096, 4096}, Kind::kHole).has_value());
    ASSERT_TRUE((*layer)->Flush().has_value());
  }
  auto header = ParseHeader(store.Contents());
  ASSERT_TRUE(header.has_value());
  EXPECT_EQ(header->allocated, 1u);
  EXPECT_EQ(store.Contents().size(), 1024u + 4096);
  std::vector<std::byte> expected = SimpleContent(5 * 4096);
  std::fill_n(expected.begin() + 2 * 4096, 4096, std::byte{0});
  auto layer = Open(store, false);
  ASSERT_TRUE(layer.has_value());
  EXPECT_EQ(*ReadAll(**layer), expected);
}

class Resized : public testing::TestWithParam<uint64_t> {};

// Each size, from each kind of image, keeps what was there and shows zeros behind it.
TEST_P(Resized, KeepsContentAndShowsZeros) {
  for (const Configuration& configuration : Configurations()) {
    if (configuration.size > kMiB) continue;
    model::Subject subject = SubjectOf(configuration);
    MemoryStore store;
    ASSERT_TRUE(subject.create(store).has_value());
    std::vector<std::byte> content = Pattern(configuration.size, 5);
    const uint64_t size = GetParam();
    Result<> resized;
    {
      auto layer = Open(store);
      ASSERT_TRUE(layer.has_value());
      ASSERT_TRUE(Write(**layer, 0, ConstBytes(content)).has_value());
      resized = (*layer)->resizer()->Resize(size, Preallocation::kOff);
      if (!resized.has_value()) {
        EXPECT_EQ(configuration.image.major, 0) << configuration.name << resized.error().text();
        continue;
      }
      content.resize(size);
      auto now = ReadAll(**layer);
      ASSERT_TRUE(now.has_value()) << configuration.name << ": " << now.error().text();
      EXPECT_EQ(*now, content) << configuration.name << ", " << size;
    }
    auto sound = IsSound(store);
    ASSERT_TRUE(sound.has_value()) << configuration.name << ": " << sound.error().text();
    auto layer = Open(store);
    ASSERT_TRUE(layer.has_value());
    EXPECT_EQ(*ReadAll(**layer), content) << configuration.name << ", " << size;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, Resized,
                         testing::Values(0, 1, 512, 5000, 200000, 245761, 300000, 5000000));

// Power fails at any moment of a resize: the old size or the new one, and all that was there.
TEST(VdiImage, ResizingIsAllOrNothing) {
  HandMade image = Simple();
  for (uint64_t size : {uint64_t{5000}, uint64_t{6 * 4096}, uint64_t{900 * 4096}}) {
    MemoryStore initial(image.Bytes());
    CrashRecorder recorder;
    std::unique_ptr<Store> store = recorder.NewStore(initial);
    {
      auto layer = Open(*store);
      ASSERT_TRUE(layer.has_value());
      auto resized = (*layer)->resizer()->Resize(size, Preallocation::kOff);
      ASSERT_TRUE(resized.has_value()) << resized.error().text();
    }
    for (uint64_t boundary = 0; boundary <= recorder.boundary(); ++boundary) {
      for (uint64_t state = 0; state < 6; ++state) {
        auto after = recorder.Crash(boundary, state);
        auto sound = IsSound(*after);
        ASSERT_TRUE(sound.has_value() && *sound) << size << ", cut " << boundary << "/" << state
                                                 << (sound.has_value() ? "" : sound.error().text());
        auto layer = Open(*after, false);
        ASSERT_TRUE(layer.has_value()) << layer.error().text();
        const uint64_t now = (*layer)->info().size;
        ASSERT_TRUE(now == image.size || now == size) << now;
        EXPECT_EQ(*ReadAll(**layer), SimpleContent(now)) << size << ", cut " << boundary;
      }
    }
  }
}

// Growing after shrinking must not bring old bytes back.
TEST(VdiImage, OldBytesDoNotComeBack) {
  for (const Configuration& configuration : Configurations()) {
    if (configuration.size > kMiB) continue;
    MemoryStore store;
    ASSERT_TRUE(SubjectOf(configuration).create(store).has_value());
    auto layer = Open(store);
    ASSERT_TRUE(layer.has_value());
    std::vector<std::byte> content = Pattern(configuration.size, 5);
    ASSERT_TRUE(Write(**layer, 0, ConstBytes(content)).has_value());
    ASSERT_TRUE((*layer)->resizer()->Resize(700, Preallocation::kOff).has_value());
    ASSERT_TRUE((*layer)->resizer()->Resize(configuration.size, Preallocation::kOff).has_value());
    std::fill(content.begin() + 700, content.end(), std::byte{0});
    EXPECT_EQ(*ReadAll(**layer), content) << configuration.name;
  }
}

TEST(VdiCreate, RefusesWhatItCannotDo) {
  auto error = [](CreateOptions options) {
    MemoryStore store;
    auto created = CreateVdi(store, options);
    return created.has_value() ? std::string() : created.error().text();
  };
  EXPECT_THAT(error({.size = 1, .options = {{"block_size", "1000"}}}),
              HasSubstr("block_size 1000"));
  EXPECT_THAT(error({.size = 1, .options = {{"block_size", "2G"}}}), HasSubstr("block_size"));
  EXPECT_THAT(error({.size = 1, .options = {{"subformat", "dynamic"}, {"static", "on"}}}),
              HasSubstr("contradict"));
  EXPECT_THAT(error({.size = uint64_t{1} << 62}), HasSubstr("use a larger block_size"));
  CreateOptions child{.size = 4096, .parent = Reference{Reference::kParent, "a", "vdi"}};
  EXPECT_THAT(error(child), HasSubstr("has to be opened"));
  child.parent_file.emplace().info.format = "qcow2";
  EXPECT_THAT(error(child), HasSubstr("this one is qcow2"));
  child.options["static"] = "on";
  EXPECT_THAT(error(child), HasSubstr("no parent"));
}

TEST(VdiCreate, ReproducibleImagesAreTheSame) {
  MemoryStore a, b, c;
  CreateOptions options{.size = 100000, .reproducible = true};
  ASSERT_TRUE(CreateVdi(a, options).has_value());
  ASSERT_TRUE(CreateVdi(b, options).has_value());
  EXPECT_EQ(a.Contents(), b.Contents());
  options.reproducible = false;
  ASSERT_TRUE(CreateVdi(c, options).has_value());
  EXPECT_NE(a.Contents(), c.Contents());
}

TEST(VdiCreate, MeasureIsTheSizeOfTheFile) {
  for (const char* subformat : {"dynamic", "fixed"}) {
    CreateOptions options{.size = 10 * kMiB + 5, .options = {{"subformat", subformat}}};
    MemoryStore store;
    ASSERT_TRUE(CreateVdi(store, options).has_value());
    std::vector<Range> data = {{0, 1}, {100, 5}, {3 * kMiB - 1, 2}, {10 * kMiB, 5}};
    auto measured = MeasureVdi(options, 0, data);
    ASSERT_TRUE(measured.has_value());
    {
      auto layer = Open(store);
      ASSERT_TRUE(layer.has_value());
      for (Range range : data) {
        auto bytes = Pattern(range.length, 1);
        ASSERT_TRUE(Write(**layer, range.offset, ConstBytes(bytes)).has_value());
      }
    }
    EXPECT_EQ(measured->required, store.Contents().size()) << subformat;
    EXPECT_EQ(measured->fully_allocated, 4096u + 4096 + 11 * kMiB);
  }
}

}  // namespace
}  // namespace platter::vdi
