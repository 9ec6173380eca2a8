#include "tools/progress.h"

#include <gtest/gtest.h>

#include "base/math.h"

namespace platter {
namespace {

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
