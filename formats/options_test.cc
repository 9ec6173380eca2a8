#include "formats/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace platter {
namespace {

using testing::HasSubstr;

TEST(SizeOption, ReadsNumbersWithSuffixes) {
  EXPECT_EQ(**SizeOption({{"size", "65536"}}, "size"), 65536u);
  EXPECT_EQ(**SizeOption({{"size", "1.5G"}}, "size"), 1610612736u);
  EXPECT_EQ(SizeOption({{"size", "8E"}}, "size").error().text(),
            "option 'size': '8E' is larger than a disk can be (8 EiB)");
  EXPECT_FALSE(SizeOption({{"size", ""}}, "size").has_value());
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

TEST(Options, CommonOnesBecomeMembers) {
  CreateOptions create;
  create.options = {
      {"size", "1M"}, {"backing_file", "base"}, {"backing_fmt", "raw"}, {"other", "on"}};
  ASSERT_TRUE(TakeCommonOptions(create).has_value());
  EXPECT_EQ(create.size, kMiB);
  ASSERT_TRUE(create.parent.has_value());
  EXPECT_EQ(create.parent->name, "base");
  EXPECT_EQ(create.parent->format, "raw");
  EXPECT_EQ(create.options, (OptionMap{{"other", "on"}}));

  create.options = {{"backing_fmt", "raw"}};  // as the parent has it
  EXPECT_TRUE(TakeCommonOptions(create).has_value());
  create.options = {{"backing_fmt", "qcow2"}};
  EXPECT_EQ(TakeCommonOptions(create).error().code(), Code::kUnsupported);
  create.options = {{"backing_file", "other"}};
  EXPECT_EQ(TakeCommonOptions(create).error().code(), Code::kUnsupported);
  CreateOptions lone;
  lone.options = {{"backing_fmt", "raw"}};
  EXPECT_THAT(TakeCommonOptions(lone).error().text(), HasSubstr("needs backing_file"));
}

TEST(Options, HelpListsTheFormatsAndTheCommonOnes) {
  static constexpr OptionHelp kOwn[] = {{"zeal", "a lot"}, {"cluster_size", "bytes"}};
  Format format = {};
  format.create_options = kOwn;
  std::vector<std::string_view> names;
  for (const OptionHelp& option : ListCreateOptions(format)) names.push_back(option.name);
  EXPECT_THAT(names,
              testing::ElementsAre("backing_file", "backing_fmt", "cluster_size", "size", "zeal"));
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
