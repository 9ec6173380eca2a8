#include "base/size.h"

#include <gtest/gtest.h>

#include "base/math.h"

namespace platter {
namespace {

TEST(ParseSize, TakesWhatQemuImgTakes) {
  EXPECT_EQ(*ParseSize("0"), 0u);
  EXPECT_EQ(*ParseSize("512"), 512u);
  EXPECT_EQ(*ParseSize("512b"), 512u);
  EXPECT_EQ(*ParseSize("512B"), 512u);
  EXPECT_EQ(*ParseSize("64k"), 65536u);
  EXPECT_EQ(*ParseSize("64K"), 65536u);
  EXPECT_EQ(*ParseSize("1.5M"), 1572864u);
  EXPECT_EQ(*ParseSize("10G"), 10 * kGiB);
  EXPECT_EQ(*ParseSize("64T"), 64 * kTiB);
  EXPECT_EQ(*ParseSize("7E"), uint64_t{7} << 60);
  EXPECT_EQ(*ParseSize("9223372036854775807"), static_cast<uint64_t>(INT64_MAX));
}

TEST(ParseSize, TakesLongerSuffixes) {
  EXPECT_EQ(*ParseSize("10GiB"), 10 * kGiB);
  EXPECT_EQ(*ParseSize("2MB"), 2 * kMiB);
}

TEST(ParseSize, CutsFractionsToBytes) {
  EXPECT_EQ(*ParseSize("1.0"), 1u);
  EXPECT_EQ(*ParseSize("1.3k"), 1331u);
  EXPECT_EQ(*ParseSize("1.00005k"), 1024u);
  EXPECT_EQ(*ParseSize("0.00000000000000000000000000000000009E"), 0u);
  EXPECT_EQ(*ParseSize("7.999999999999999999E"), static_cast<uint64_t>(INT64_MAX) - 1);
}

TEST(ParseSize, RefusesTheRest) {
  for (const char* text : {"",
                           "k",
                           "-1",
                           "+1",
                           "1.5",
                           "1.5b",
                           "1..5M",
                           "1.M",
                           ".5k",
                           "10Q",
                           "10G5",
                           "1kk",
                           "1bB",
                           "1BiB",
                           "1 k",
                           " 1",
                           "1 ",
                           "0x10",
                           "1e3",
                           "8E",
                           "9223372036854775808",
                           "99999999999999999999",
                           "99999999999999999999x"}) {
    auto size = ParseSize(text);
    ASSERT_FALSE(size) << text << " is " << *size;
    EXPECT_EQ(size.error().code(), Code::kOutOfRange);
  }
  EXPECT_EQ(ParseSize("8E").error().text(), "'8E' is larger than a disk can be (8 EiB)");
}

TEST(HumanSize, PrintsThreeDigits) {
  EXPECT_EQ(HumanSize(0), "0 B");
  EXPECT_EQ(HumanSize(512), "512 B");
  EXPECT_EQ(HumanSize(196 * kKiB), "196 KiB");
  EXPECT_EQ(HumanSize(4 * kGiB), "4 GiB");
  EXPECT_EQ(HumanSize(1474560), "1.41 MiB");
  EXPECT_EQ(HumanSize(1023), "0.999 KiB");
}

}  // namespace
}  // namespace platter
