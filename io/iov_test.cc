#include "io/iov.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>

namespace platter {
namespace {

// Three pieces of 3, 0 and 5 bytes over one array.
class IovTest : public testing::Test {
 protected:
  IovTest() {
    std::iota(reinterpret_cast<unsigned char*>(bytes_.data()),
              reinterpret_cast<unsigned char*>(bytes_.data()) + bytes_.size(), 0);
  }
  std::array<std::byte, 8> bytes_;
  std::array<iovec, 3> iov_{iovec{bytes_.data(), 3}, iovec{bytes_.data() + 3, 0},
                            iovec{bytes_.data() + 3, 5}};
};

TEST_F(IovTest, SlicesAcrossPieces) {
  EXPECT_EQ(IovLength(iov_), 8u);
  std::vector<iovec> out;
  IovSlice(iov_, 2, 4, out);
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].iov_base, bytes_.data() + 2);
  EXPECT_EQ(out[0].iov_len, 1u);
  EXPECT_EQ(out[1].iov_base, bytes_.data() + 3);
  EXPECT_EQ(out[1].iov_len, 3u);
  IovSlice(iov_, 8, 0, out);
  EXPECT_EQ(out.size(), 2u);
}

TEST_F(IovTest, GathersScattersAndFills) {
  std::array<std::byte, 4> part;
  IovGather(iov_, 1, part);
  EXPECT_EQ(part, (std::array{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}}));
  IovScatter(part, iov_, 4);
  EXPECT_EQ(bytes_[3], std::byte{3});
  EXPECT_EQ(bytes_[4], std::byte{1});
  EXPECT_EQ(bytes_[7], std::byte{4});
  IovFillZero(iov_, 2, 2);
  EXPECT_EQ(bytes_[1], std::byte{1});
  EXPECT_EQ(bytes_[2], std::byte{0});
  EXPECT_EQ(bytes_[3], std::byte{0});
  EXPECT_EQ(bytes_[4], std::byte{1});
}

TEST_F(IovTest, PastTheEndIsAProgrammersError) { EXPECT_DEATH(IovFillZero(iov_, 4, 5), ""); }

}  // namespace
}  // namespace platter
