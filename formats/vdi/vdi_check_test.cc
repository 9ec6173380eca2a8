// Check and repair: what is wrong is named, and what can be mended is.
#include "formats/vdi/vdi_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "formats/vdi/vdi_testing.h"
#include "io/engine/engine.h"

namespace platter::vdi {
namespace {

using testing::HasSubstr;

HandMade Sound() {
  return {.size = 6 * 4096,
          .map = {1, 0xffffffff, 0, 2, 0xffffffff, 3},
          .allocated = 4,
          .data = Pattern(4 * 4096, 7)};
}

CheckReport Check(Store& store, CheckOptions::Repair repair = CheckOptions::kNone) {
  auto report = CheckVdi(store, {}, {.repair = repair});
  EXPECT_TRUE(report.has_value()) << report.error().text();
  return report.has_value() ? std::move(*report) : CheckReport{};
}

std::string Texts(const CheckReport& report) {
  std::string text;
  for (const auto& finding : report.findings) text += finding.text + "\n";
  return text;
}

std::vector<std::byte> Content(Store& store) {
  auto layer = Open(store, false);
  EXPECT_TRUE(layer.has_value());
  auto bytes = ReadAll(**layer);
  EXPECT_TRUE(bytes.has_value()) << bytes.error().text();
  return bytes.has_value() ? *bytes : std::vector<std::byte>();
}

// Repairs all, after which there is nothing to be found.
CheckReport ExpectMended(Store& store) {
  CheckReport report = Check(store, CheckOptions::kAll);
  EXPECT_EQ(report.corruptions + report.leaks + report.errors, 0u) << Texts(report);
  EXPECT_EQ(Texts(Check(store)), "");
  return report;
}

TEST(VdiCheck, SoundImagesHaveNoFindings) {
  MemoryStore store(Sound().Bytes());
  CheckReport report = Check(store);
  EXPECT_EQ(Texts(report), "");
  EXPECT_EQ(report.total_units, 6u);
  EXPECT_EQ(report.allocated_units, 4u);
  EXPECT_EQ(report.image_end, 1024u + 4 * 4096);
  const auto before = store.Contents();
  ExpectMended(store);
  EXPECT_EQ(store.Contents(), before);
}

TEST(VdiCheck, SharedBlocksNameTheirOwnersAndGetCopies) {
  HandMade image = Sound();
  image.map[1] = 2;
  image.map[4] = 2;
  MemoryStore store(image.Bytes());
  const auto before = Content(store);
  CheckReport report = Check(store);
  EXPECT_EQ(report.corruptions, 2u);
  EXPECT_THAT(Texts(report), HasSubstr("host block 2 at 0x2400 is named by block map entries 1, 3 "
                                       "and 4"));
  EXPECT_EQ(ExpectMended(store).corruptions_fixed, 2u);
  EXPECT_EQ(Content(store), before);
  // Their own: writing one leaves the others.
  auto layer = Open(store);
  ASSERT_TRUE(layer.has_value()) << layer.error().text();
  auto other = Pattern(4096, 12);
  ASSERT_TRUE(Write(**layer, 3 * 4096, ConstBytes(other)).has_value());
  auto after = before;
  std::ranges::copy(other, after.begin() + 3 * 4096);
  EXPECT_EQ(*ReadAll(**layer), after);
}

// qemu-img finds nothing wrong here, and reads zeros.
TEST(VdiCheck, EntriesPastTheEndAreCorruptions) {
  HandMade image = Sound();
  image.map[1] = 4;
  MemoryStore store(image.Bytes());
  CheckReport report = Check(store);
  EXPECT_EQ(report.corruptions, 1u);
  EXPECT_THAT(Texts(report),
              HasSubstr("entry 1 names host block 4 at 0x4400, past the end of the file (0x4400)"));
  auto expected = Sound();
  MemoryStore sound(expected.Bytes());
  EXPECT_EQ(ExpectMended(store).corruptions_fixed, 1u);
  EXPECT_EQ(Content(store), Content(sound));
}

TEST(VdiCheck, FilesThatEndInsideABlockGetTheRest) {
  HandMade image = Sound();
  image.data.resize(4 * 4096 - 500);
  MemoryStore store(image.Bytes());
  CheckReport report = Check(store);
  EXPECT_EQ(report.corruptions, 1u);
  EXPECT_THAT(Texts(report), HasSubstr("of which the file holds 3596 of 4096 bytes"));
  ExpectMended(store);
  EXPECT_EQ(store.Contents().size(), 1024u + 4 * 4096);
}

TEST(VdiCheck, TheCountInTheHeaderIsCorrected) {
  HandMade image = Sound();
  image.allocated = 3;
  MemoryStore low(image.Bytes());
  CheckReport report = Check(low);
  EXPECT_EQ(report.corruptions, 1u);
  EXPECT_THAT(Texts(report), HasSubstr("3 host blocks are counted, but host block 3 is in use"));
  ExpectMended(low);

  image.allocated = 9;
  MemoryStore high(image.Bytes());
  report = Check(high);
  EXPECT_EQ(report.leaks, 1u);
  EXPECT_EQ(report.corruptions, 0u);
  EXPECT_EQ(Check(high, CheckOptions::kLeaks).leaks_fixed, 1u);
  EXPECT_EQ(Texts(Check(high)), "");
}

TEST(VdiCheck, HolesAreLeaksAndAreFilled) {
  HandMade image = Sound();
  image.map[0] = 0xffffffff;  // host block 1
  image.map[2] = 0xffffffff;  // host block 0
  MemoryStore store(image.Bytes());
  const auto before = Content(store);
  CheckReport report = Check(store);
  EXPECT_EQ(report.leaks, 2u);
  EXPECT_THAT(Texts(report), HasSubstr("host blocks 0 to 1 are used by nothing"));
  report = Check(store, CheckOptions::kLeaks);
  EXPECT_EQ(report.leaks, 0u) << Texts(report);
  EXPECT_EQ(report.leaks_fixed, 2u);
  EXPECT_EQ(Texts(Check(store)), "");
  EXPECT_EQ(Content(store), before);
  EXPECT_EQ(store.Contents().size(), 1024u + 2 * 4096);
}

// Everything at once, from seeds: after the repair the image is sound, and what could be read
// before reads the same.
TEST(VdiCheck, AnyMapCanBeRepaired) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    auto random = Pattern(64, seed);
    HandMade image = Sound();
    image.block_extra = seed % 3 == 0 ? 64 : 0;
    image.data.resize(4 * (4096 + image.block_extra) - (seed % 5 == 0 ? 100 : 0));
    for (size_t i = 0; i < image.map.size(); ++i) {
      uint32_t value = std::to_integer<uint32_t>(random[i]) % 8;
      image.map[i] = value < 6 ? value : value == 6 ? 0xffffffff : 0xfffffffe;
    }
    image.allocated = std::to_integer<uint32_t>(random[32]) % 7;
    MemoryStore store(image.Bytes());
    auto layer = Open(store, false);
    ASSERT_TRUE(layer.has_value());
    std::vector<std::byte> before(image.size), after(image.size);
    std::vector<bool> readable;
    for (uint64_t at = 0; at < image.size; at += 4096) {
      readable.push_back(Read(**layer, at, Bytes(before).subspan(at, 4096)).has_value());
    }
    ExpectMended(store);
    auto mended = Open(store);
    ASSERT_TRUE(mended.has_value()) << "seed " << seed << ": " << mended.error().text();
    ASSERT_TRUE(Read(**mended, 0, Bytes(after)).has_value());
    for (uint64_t at = 0; at < image.size; at += 4096) {
      if (!readable[at / 4096]) continue;
      EXPECT_TRUE(std::equal(&after[at], &after[at] + 4096, &before[at])) << "seed " << seed;
    }
  }
}

TEST(VdiCheck, RepairNeedsAWritableStore) {
  HandMade image = Sound();
  image.allocated = 9;
  MemoryStore store(image.Bytes(), {.writable = false});
  auto report = CheckVdi(store, {}, {.repair = CheckOptions::kAll});
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code(), Code::kReadOnly);
}

}  // namespace
}  // namespace platter::vdi
