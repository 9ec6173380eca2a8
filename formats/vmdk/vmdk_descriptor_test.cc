#include "formats/vmdk/vmdk_descriptor.h"

#include <gtest/gtest.h>

#include "formats/vmdk/vmdk_text.h"

namespace platter::vmdk {
namespace {

constexpr std::string_view kPlain =
    "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
    "createType=\"monolithicFlat\"\n\n# Extent description\nRW 2048 FLAT \"x-flat.vmdk\" 0\n\n"
    "#DDB\nddb.adapterType = \"ide\"\n"
    "ddb.longContentID = \"0123456789abcdef0123456712345678\"\n";

std::string ErrorOf(std::string_view text) {
  auto parsed = ParseDescriptor(text);
  return parsed ? "" : parsed.error().text();
}

std::string WithLine(std::string_view line) {
  return std::string(kPlain) + std::string(line) + "\n";
}

TEST(VmdkDescriptor, SaysWhatIsThere) {
  auto d = ParseDescriptor(kPlain);
  ASSERT_TRUE(d) << d.error().text();
  EXPECT_EQ(d->cid, 0x12345678u);
  EXPECT_FALSE(d->has_parent());
  EXPECT_EQ(d->create_type, "monolithicFlat");
  ASSERT_EQ(d->extents.size(), 1u);
  EXPECT_EQ(d->extents[0].type, ExtentLine::kFlat);
  EXPECT_EQ(d->extents[0].access, ExtentLine::kReadWrite);
  EXPECT_EQ(d->extents[0].name, "x-flat.vmdk");
  EXPECT_EQ(d->sectors(), 2048u);
  EXPECT_EQ(d->Ddb("ADAPTERTYPE"), "ide");
}

TEST(VmdkDescriptor, LineEndsSpacesAndAByteOrderMarkDoNotMatter) {
  std::string text(kPlain);
  for (std::string_view end : {"\r\n", "\r"}) {
    std::string other;
    for (char c : text) other += c == '\n' ? std::string(end) : std::string(1, c);
    auto d = ParseDescriptor("\xef\xbb\xbf" + other);
    ASSERT_TRUE(d) << d.error().text();
    EXPECT_EQ(d->cid, 0x12345678u);
    EXPECT_EQ(d->sectors(), 2048u);
  }
  auto d = ParseDescriptor(
      "version = 1\n \tcid\t= 9 \n PARENTcid = \"0000000a\"\n"
      "  rw\t 100   sparse \"a b.vmdk\"  \n createtype = custom");
  ASSERT_TRUE(d) << d.error().text();
  EXPECT_EQ(d->cid, 9u);
  EXPECT_EQ(d->parent_cid, 10u);
  EXPECT_EQ(d->create_type, "custom");
  EXPECT_EQ(d->extents[0].name, "a b.vmdk");
}

TEST(VmdkDescriptor, WhatFollowsAZeroByteIsPadding) {
  auto d = ParseDescriptor(std::string(kPlain) + std::string("\0RW x\n", 6));
  ASSERT_TRUE(d) << d.error().text();
  EXPECT_EQ(d->text, kPlain);
}

TEST(VmdkDescriptor, ExtentsOfAllTypes) {
  auto d = ParseDescriptor(
      "RW 1 FLAT \"a\" 7\nRDONLY 2 SPARSE \"b\"\nNOACCESS 3 ZERO\nRW 4 VMFS \"c\"\n"
      "RW 5 VMFSSPARSE \"d\"\nRW 6 SESPARSE \"e\"\n"
      "RW 7 FLAT \"/dev/sda\" 63 partitionUUID /dev/sda1\n");
  ASSERT_TRUE(d) << d.error().text();
  ASSERT_EQ(d->extents.size(), 7u);
  EXPECT_EQ(d->extents[0].offset, 7u);
  EXPECT_EQ(d->extents[1].access, ExtentLine::kReadOnly);
  EXPECT_EQ(d->extents[2].access, ExtentLine::kNoAccess);
  EXPECT_TRUE(d->extents[3].flat());
  EXPECT_TRUE(d->extents[4].sparse() && d->extents[5].sparse());
  EXPECT_EQ(d->extents[6].offset, 63u);
  EXPECT_EQ(d->sectors(), 28u);
}

TEST(VmdkDescriptor, WhatIsWrongIsNamedWithItsLine) {
  struct {
    std::string_view line, expected;
  } const cases[] = {
      {"RW 0x800 FLAT \"x\" 0", "'0x800' is no number of sectors"},
      {"RW 18446744073709551616 FLAT \"x\" 0", "no number of sectors"},
      {"RW 9223372036854775807 FLAT \"x\" 0", "no number of sectors"},
      {"RW 1 FLAT \"x 0", "no file name in quotes"},
      {"RW 1 FLAT", "no file name in quotes"},
      {"RW 1 FLAT \"x\" 99999999999999999999", "no offset into its file"},
      {"RW 1 VMFSRDM \"x\"", "type 'VMFSRDM' are not supported"},
      {"createType=\"monolithicFlat", "createType has no closing quote"},
      {"CID=123456789", "not eight hexadecimal digits"},
      {"version=9", "version '9'"},
  };
  for (const auto& c : cases) {
    std::string error = ErrorOf(WithLine(c.line));
    EXPECT_NE(error.find("line 13: "), error.npos) << c.line << ": " << error;
    EXPECT_NE(error.find(c.expected), error.npos) << c.line << ": " << error;
  }
  EXPECT_NE(ErrorOf("version=1\n").find("no extents"), std::string::npos);
  std::string sum;
  for (int i = 0; i < 3; ++i) sum += "RW 9000000000000000 ZERO\n";
  EXPECT_NE(ErrorOf(sum).find("larger than a disk can be"), std::string::npos);
}

TEST(VmdkDescriptor, AnotherCidChangesNothingElse) {
  for (std::string_view cid : {"12345678", "7"}) {
    std::string text(kPlain);
    text.replace(text.find("12345678"), 8, cid);
    auto d = ParseDescriptor(text);
    ASSERT_TRUE(d);
    std::string changed = WithCid(*d, 0xab);
    auto again = ParseDescriptor(changed);
    ASSERT_TRUE(again);
    EXPECT_EQ(again->cid, 0xabu);
    EXPECT_EQ(again->Ddb("longContentID"), "0123456789abcdef01234567000000ab");
    EXPECT_EQ(again->sectors(), 2048u);
    EXPECT_EQ(WithCid(*again, *d->cid).size(), changed.size());
  }
}

TEST(VmdkDescriptor, NamesInOtherEncodings) {
  EXPECT_EQ(ToUtf8("B\xfcro", "windows-1252"), "Büro");
  EXPECT_EQ(ToUtf8("\x83\x65\x83\x58\x83\x67", "Shift_JIS"), "テスト");
  EXPECT_EQ(ToUtf8("\xb2\xe2\xca\xd4", "GBK"), "测试");
  EXPECT_EQ(ToUtf8("plain", "windows-1252"), std::nullopt);
  EXPECT_EQ(ToUtf8("B\xfcro", "no such thing"), std::nullopt);
  EXPECT_EQ(ToUtf8("B\xfcro", "../../tmp/evil"), std::nullopt);
  EXPECT_EQ(ToUtf8("B\xfcro", "UTF-8"), std::nullopt) << "not UTF-8";
}

}  // namespace
}  // namespace platter::vmdk
