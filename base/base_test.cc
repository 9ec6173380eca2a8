#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <vector>

#include "base/bytes.h"
#include "base/endian.h"
#include "base/range.h"
#include "base/result.h"

namespace platter {
namespace {

Result<int> Half(int value) {
  if (value % 2 != 0) return Fail(Code::kOutOfRange, "{} is odd", value);
  return value / 2;
}

Result<int> Quarter(int value) { return TRY(Half(TRY_AS("first half", Half(value)))); }

TEST(Result, TryPassesValuesAndErrors) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(3).error().text(), "first half: 3 is odd");
  EXPECT_EQ(Quarter(6).error().code(), Code::kOutOfRange);
}

TEST(Result, ErrnoIsNamedAndClassified) {
  Result<> result = FailErrno(ENOSPC, "write '{}'", "a.img");
  EXPECT_EQ(result.error().text(), "write 'a.img': No space left on device");
  EXPECT_EQ(result.error().code(), Code::kNoSpace);
  EXPECT_EQ(result.error().errno_value(), ENOSPC);
}

TEST(Endian, RoundTripsAndHasTheRightBytes) {
  be32 big = 0x01020304;
  le32 little = 0x01020304;
  EXPECT_EQ(AsBytes(big)[0], std::byte{1});
  EXPECT_EQ(AsBytes(little)[0], std::byte{4});
  EXPECT_EQ(big, 0x01020304u);
  EXPECT_EQ(little, 0x01020304u);
}

TEST(Bytes, LoadAtIsBounded) {
  std::array<std::byte, 6> bytes{};
  bytes[5] = std::byte{7};
  EXPECT_EQ(*LoadAt<be16>(bytes, 4), 7);
  EXPECT_FALSE(LoadAt<be16>(bytes, 5));
  EXPECT_FALSE(LoadAt<be16>(bytes, UINT64_MAX));
}

TEST(Bytes, IsZeroSeesEveryByte) {
  for (size_t size : {0, 1, 15, 16, 17, 33, 4096}) {
    std::vector<std::byte> bytes(size);
    EXPECT_TRUE(IsZero(bytes));
    for (size_t i = 0; i < size; ++i) {
      bytes[i] = std::byte{1};
      EXPECT_FALSE(IsZero(bytes)) << size << " " << i;
      bytes[i] = std::byte{0};
    }
  }
}

TEST(Bytes, PrintableTamesTerminals) {
  EXPECT_EQ(Printable("a\x1b]0;x\x07"), "a\\x1b]0;x\\x07");
  EXPECT_EQ(Printable("\xff\xc0\x80"), "\\xff\\xc0\\x80");
  EXPECT_EQ(Printable("Größe"), "Größe");
  EXPECT_EQ(Printable("\xc2\x9b"), "\\xc2\\x9b");
  EXPECT_EQ(Printable("abc", 2), "ab...");
}

TEST(Range, RoundsAndIntersects) {
  Range range{5, 10};
  EXPECT_EQ(range.Outward(8), (Range{0, 16}));
  EXPECT_EQ(range.Inward(4), (Range{8, 4}));
  EXPECT_TRUE((Range{5, 2}.Inward(8).empty()));
  EXPECT_EQ(range.Intersect(Range{10, 100}), (Range{10, 5}));
  EXPECT_TRUE(range.Intersect(Range{20, 1}).empty());
  EXPECT_FALSE(range.Overlaps(Range{15, 1}));
}

TEST(Math, NothingWraps) {
  EXPECT_FALSE(CheckedAdd(UINT64_MAX, 1));
  EXPECT_FALSE(CheckedMultiply(uint64_t{1} << 40, uint64_t{1} << 24));
  EXPECT_FALSE(FitsIn(UINT64_MAX, 2, UINT64_MAX));
  EXPECT_TRUE(FitsIn(10, 0, 10));
}

}  // namespace
}  // namespace platter
