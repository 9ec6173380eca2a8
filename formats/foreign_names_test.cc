#include "formats/foreign_names.h"

#include <gtest/gtest.h>

#include "formats/new_identity.h"

namespace platter {
namespace {

TEST(Utf16, BothOrdersAndBack) {
  const std::string text = "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x92\xbe";  // 1 to 4 bytes of UTF-8
  for (std::endian order : {std::endian::big, std::endian::little}) {
    std::vector<std::byte> wide = ToUtf16(text, order);
    EXPECT_EQ(wide.size(), 10u);
    EXPECT_EQ(FromUtf16(wide, order), text);
  }
  EXPECT_EQ(ToUtf16("a", std::endian::big)[1], std::byte{'a'});
  EXPECT_EQ(ToUtf16("a", std::endian::little)[0], std::byte{'a'});
}

TEST(Utf16, EndsAtNulAndMendsWhatIsBroken) {
  auto decode = [](std::string_view bytes) { return FromUtf16(AsBytes(bytes), std::endian::big); };
  EXPECT_EQ(decode({"\0a\0\0\0b", 6}), "a");
  EXPECT_EQ(decode({"\0a\0", 3}), "a") << "an odd byte";
  EXPECT_EQ(decode({"\xd8\x00\0b", 4}),
            "\xef\xbf\xbd"
            "b")
      << "half a pair";
  EXPECT_EQ(decode({"\xd8\x00", 2}), "\xef\xbf\xbd");
  EXPECT_EQ(decode({"\xdc\x00\xd8\x00", 4}), "\xef\xbf\xbd\xef\xbf\xbd");
  for (std::string_view broken : {"\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf5\x80\x80\x80"}) {
    std::vector<std::byte> wide = ToUtf16(broken, std::endian::big);
    ASSERT_GE(wide.size(), 2u);
    EXPECT_EQ(wide[0], std::byte{0xff});
    EXPECT_EQ(wide[1], std::byte{0xfd});
  }
}

TEST(WindowsPath, BecomesOneOfOursWhereItCan) {
  EXPECT_EQ(FromWindowsPath(".\\a\\b.vhd"), "./a/b.vhd");
  EXPECT_EQ(FromWindowsPath("..\\b.vhd"), "../b.vhd");
  EXPECT_EQ(FromWindowsPath("b.vhd"), "b.vhd");
  EXPECT_EQ(FromWindowsPath("/srv/b.vhd"), "/srv/b.vhd");
  for (std::string_view path :
       {"", "C:\\vm\\b.vhd", "c:b.vhd", "\\\\server\\share\\b.vhd", "\\\\?\\C:\\b.vhd"}) {
    EXPECT_FALSE(FromWindowsPath(path)) << path;
  }
  EXPECT_EQ(ToWindowsPath("a/b.vhd"), ".\\a\\b.vhd");
  EXPECT_EQ(ToWindowsPath("../b.vhd"), "..\\b.vhd");
}

TEST(WindowsPath, FileName) {
  EXPECT_EQ(ForeignFileName("C:\\vm\\b.vhd"), "b.vhd");
  EXPECT_EQ(ForeignFileName("C:b.vhd"), "b.vhd");
  EXPECT_EQ(ForeignFileName("/srv/b.vhd"), "b.vhd");
  EXPECT_EQ(ForeignFileName("b.vhd"), "b.vhd");
  EXPECT_EQ(ForeignFileName("a\\"), "");
}

TEST(ImageId, RandomOrReproducible) {
  CreateOptions options;
  EXPECT_NE(MakeImageId(options, "id"), MakeImageId(options, "id"));
  options.reproducible = true;
  ImageId id = MakeImageId(options, "id");
  EXPECT_EQ(MakeImageId(options, "id"), id);
  EXPECT_NE(MakeImageId(options, "other"), id);
  EXPECT_EQ(id[6] >> 4, std::byte{4});
  options.size = 1;
  EXPECT_NE(MakeImageId(options, "id"), id);
  EXPECT_FALSE(IsNil(id));
}

TEST(ImageId, Text) {
  ImageId id;
  for (size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::byte>(i * 0x11);
  EXPECT_EQ(IdText(id), "00112233-4455-6677-8899-aabbccddeeff");
  EXPECT_EQ(GuidText(id), "33221100-5544-7766-8899-aabbccddeeff");
}

}  // namespace
}  // namespace platter
