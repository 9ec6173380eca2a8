#include "formats/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace platter {
namespace {

using testing::HasSubstr;

std::optional<uint64_t> Size(const std::string& text) {
  auto size = SizeOption({{"size", text}}, "size");
  if (!size) return std::nullopt;
  return **size;
}

TEST(SizeOption, ReadsNumbersWithSuffixes) {
  EXPECT_EQ(Size("0"), 0u);
  EXPECT_EQ(Size("65536"), 65536u);
  EXPECT_EQ(Size("512b"), 512u);
  EXPECT_EQ(Size("64k"), 65536u);
  EXPECT_EQ(Size("1.5G"), 1610612736u);
  EXPECT_EQ(Size("1.0"), 1u);
  EXPECT_EQ(Size("2MiB"), 2 * kMiB);
  EXPECT_EQ(Size("2MB"), 2 * kMiB);
  EXPECT_EQ(Size("64T"), 64 * kTiB);
  EXPECT_EQ(Size("7E"), uint64_t{7} << 60);
  EXPECT_EQ(Size("9223372036854775807"), INT64_MAX);
}

TEST(SizeOption, RefusesWhatIsNoSize) {
  for (const char* text :
       {"", "-1", "+1", "k", "1x", "1kk", "1bB", "1.5", "1.3k", " 1", "1 ", "0x10", "8E",
        "9223372036854775808", "99999999999999999999", "7.9999E", "1.0000000000000001k"}) {
    EXPECT_EQ(Size(text), std::nullopt) << text;
  }
  auto size = SizeOption({{"size", "8E"}}, "size");
  EXPECT_THAT(size.error().text(), HasSubstr("option 'size': '8E'"));
}

TEST(Options, MissingOnesAreNothing) {
  EXPECT_EQ(*SizeOption({}, "size"), std::nullopt);
  EXPECT_EQ(*NumberOption({}, "n"), std::nullopt);
  EXPECT_EQ(*BoolOption({}, "b"), std::nullopt);
  EXPECT_EQ(*ChoiceOption({}, "c", {"x"}), std::nullopt);
  EXPECT_EQ(*PreallocationOption({}, {}), Preallocation::kOff);
}

TEST(Options, Kinds) {
  EXPECT_EQ(*NumberOption({{"n", "16"}}, "n"), 16u);
  EXPECT_FALSE(NumberOption({{"n", "16k"}}, "n").has_value());
  EXPECT_EQ(*BoolOption({{"b", "on"}}, "b"), true);
  EXPECT_EQ(*BoolOption({{"b", "off"}}, "b"), false);
  EXPECT_FALSE(BoolOption({{"b", "maybe"}}, "b").has_value());
  EXPECT_EQ(*ChoiceOption({{"c", "zstd"}}, "c", {"zlib", "zstd"}), 1u);
  auto none = ChoiceOption({{"c", "lz4"}}, "c", {"zlib", "zstd"});
  EXPECT_THAT(none.error().text(), HasSubstr("one of zlib, zstd"));
}

TEST(Options, Preallocation) {
  auto of = [](const char* value) {
    return PreallocationOption({{"preallocation", value}},
                               {Preallocation::kFalloc, Preallocation::kFull});
  };
  EXPECT_EQ(*of("off"), Preallocation::kOff);
  EXPECT_EQ(*of("full"), Preallocation::kFull);
  EXPECT_THAT(of("metadata").error().text(), HasSubstr("one of off, falloc, full"));
}

TEST(Options, UnknownNamesAreRefused) {
  static constexpr OptionHelp kKnown[] = {{"size", ""}, {"offset", ""}};
  EXPECT_TRUE(CheckOptionNames("raw", {{"size", "1"}}, kKnown).has_value());
  auto unknown = CheckOptionNames("raw", {{"szie", "1"}}, kKnown);
  ASSERT_FALSE(unknown.has_value());
  EXPECT_EQ(unknown.error().code(), Code::kUnsupported);
  EXPECT_THAT(unknown.error().text(), HasSubstr("raw has no option 'szie'; it has: size, offset"));
}

}  // namespace
}  // namespace platter
