#include "tools/size.h"

#include <gtest/gtest.h>

#include "tools/progress.h"

namespace platter {
namespace {

TEST(ParseSize, TakesWhatQemuImgTakes) {
  EXPECT_EQ(*ParseSize("0"), 0u);
  EXPECT_EQ(*ParseSize("512"), 512u);
  EXPECT_EQ(*ParseSize("512b"), 512u);
  EXPECT_EQ(*ParseSize("64k"), 65536u);
  EXPECT_EQ(*ParseSize("64K"), 65536u);
  EXPECT_EQ(*ParseSize("1.5M"), 1572864u);
  EXPECT_EQ(*ParseSize("10G"), 10 * kGiB);
  EXPECT_EQ(*ParseSize("10GiB"), 10 * kGiB);
  EXPECT_EQ(*ParseSize("64T"), 64 * kTiB);
  EXPECT_EQ(*ParseSize("7E"), 7 * kTiB * 1024 * 1024);
}

TEST(ParseSize, RefusesTheRest) {
  for (const char* text : {"", "k", "-1", "1.5", "1..5M", "1.M", "10Q", "10G5", "8E",
                           "99999999999999999999", "0x10", " 1"}) {
    EXPECT_FALSE(ParseSize(text)) << text;
  }
}

TEST(HumanSize, PrintsThreeDigits) {
  EXPECT_EQ(HumanSize(0), "0 B");
  EXPECT_EQ(HumanSize(512), "512 B");
  EXPECT_EQ(HumanSize(196 * kKiB), "196 KiB");
  EXPECT_EQ(HumanSize(4 * kGiB), "4 GiB");
  EXPECT_EQ(HumanSize(1474560), "1.41 MiB");
  EXPECT_EQ(HumanSize(1023), "0.999 KiB");
}

TEST(ProgressBar, FitsItsWidthAndEndsWhole) {
  for (unsigned width : {20u, 40u, 80u, 200u}) {
    for (uint64_t done : {0, 1, 50, 100}) {
      EXPECT_LE(ProgressBar(done, 100, done * kMiB, 3.0, width).size(), std::max(width, 20u));
    }
  }
  EXPECT_NE(ProgressBar(100, 100, kGiB, 2.0, 80).find("(100.00/100%)"), std::string::npos);
  EXPECT_NE(ProgressBar(50, 100, kGiB, 2.0, 80).find("512 MiB/s"), std::string::npos);
  EXPECT_NE(ProgressBar(50, 100, kGiB, 62.0, 80).find("1:02 left"), std::string::npos);
  EXPECT_NE(ProgressBar(0, 0, 0, 0.0, 80).find("100.00"), std::string::npos);
}

}  // namespace
}  // namespace platter
