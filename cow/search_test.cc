// Parents that are known by an id: looked for in folders, and told apart by version.
#include "cow/search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <utility>

namespace platter {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

// A format for these tests: "IMAGE id version" is the whole file.
constexpr std::string_view kMagic = "IMAGE ";

int Probe(ConstBytes head, ConstBytes, uint64_t) {
  return AsText(head).starts_with(kMagic) ? 1 : 0;
}

class IdLayer final : public Layer {
 public:
  explicit IdLayer(Identity identity) { info_.identity = std::move(identity); }
  const Info& info() const override { return info_; }
  Pin Hold() override { return {}; }
  Result<size_t> Map(Range, std::span<Extent>) override { return Fail(Code::kIo, "no disk"); }
  Result<std::unique_ptr<Reservation>> Reserve(Range) override {
    return Fail(Code::kIo, "no disk");
  }
  Result<Range> Discard(Range, Kind) override { return Fail(Code::kIo, "no disk"); }
  Result<> Flush() override { return {}; }

 private:
  Info info_;
};

Result<std::unique_ptr<Layer>> Open(std::unique_ptr<Store> store, const OpenOptions& options) {
  EXPECT_TRUE(options.info_only);
  std::string text(TRY(store->Size()), '\0');
  TRY(store->Read(0, std::as_writable_bytes(std::span(text))));
  text.erase(0, kMagic.size());
  size_t space = text.find(' ');
  if (space == text.npos) return Fail(Code::kCorrupt, "no version");
  return std::make_unique<IdLayer>(Identity{text.substr(0, space), text.substr(space + 1)});
}

constexpr Format kFormat = {
    .name = "test",
    .create_options = {},
    .probe = Probe,
    .open = Open,
    .create = nullptr,
    .check = nullptr,
    .measure = nullptr,
};

class SearchTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) /
            testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    fs::create_directories(root_ / "here");
    fs::create_directories(root_ / "there");
  }
  void TearDown() override { fs::remove_all(root_); }

  void Put(const std::string& name, const std::string& text) {
    std::ofstream(root_ / name) << text;
  }
  // The path below the root, or the error.
  std::string Find(const std::string& id, std::vector<std::string> versions = {}) {
    Reference reference{.id = id, .versions = std::move(versions)};
    auto path = FindById(reference, kFormat, {root_ / "here", root_ / "there"});
    return path ? fs::relative(*path, root_).string() : path.error().text();
  }

  fs::path root_;
};

TEST_F(SearchTest, FindsTheIdInTheFirstFolderThatHasIt) {
  Put("here/a", "IMAGE one v1");
  Put("here/b", "IMAGE two v1");
  Put("there/c", "IMAGE two v1");
  Put("there/d", "IMAGE three v1");
  EXPECT_EQ(Find("two"), "here/b");
  EXPECT_EQ(Find("three"), "there/d");
}

TEST_F(SearchTest, FollowsNoLinks) {
  Put("elsewhere", "IMAGE one v1");
  fs::create_symlink(root_ / "elsewhere", root_ / "here/link");
  EXPECT_THAT(Find("one"), HasSubstr("no test image in the image's directory"));
}

TEST_F(SearchTest, PrefersTheWantedVersion) {
  Put("here/a", "IMAGE one old");
  Put("there/b", "IMAGE one new");
  EXPECT_EQ(Find("one", {"new"}), "there/b");
  EXPECT_EQ(Find("one", {"old", "older"}), "here/a");
  EXPECT_EQ(Find("one", {"lost"}), "here/a") << "the check of the version then says what is wrong";
}

TEST_F(SearchTest, PassesOverWhatIsNoImage) {
  Put("here/a", "");
  Put("here/b", "something else");
  Put("here/c", "IMAGE damaged");
  fs::create_directories(root_ / "here/d");
  fs::create_symlink("nowhere", root_ / "here/e");
  Put("here/f", "IMAGE one v1");
  EXPECT_EQ(Find("one"), "here/f");
}

TEST_F(SearchTest, SaysWhatItLookedForAndHowToGoOn) {
  EXPECT_THAT(Find("one"), AllOf(HasSubstr("parent {one}"), HasSubstr("--search DIR")));
  Reference reference{.id = "one"};
  auto path = FindById(reference, kFormat, {root_ / "missing"});
  ASSERT_FALSE(path);
  EXPECT_EQ(path.error().errno_value(), ENOENT);
}

TEST(CheckIdentity, ComparesIdAndVersion) {
  const Identity parent{.id = "one", .version = "v2"};
  EXPECT_TRUE(CheckIdentity(Reference{}, parent));
  EXPECT_TRUE(CheckIdentity(Reference{.id = "one"}, parent));
  EXPECT_TRUE(CheckIdentity(Reference{.id = "one", .versions = {"v1", "v2"}}, parent));

  auto other = CheckIdentity(Reference{.id = "two"}, parent);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code(), Code::kRefused);
  EXPECT_THAT(other.error().text(), AllOf(HasSubstr("one"), HasSubstr("two")));

  auto changed = CheckIdentity(Reference{.versions = {"v1", "v0"}}, parent);
  ASSERT_FALSE(changed);
  EXPECT_THAT(changed.error().text(), AllOf(HasSubstr("v2"), HasSubstr("v1 or v0")));

  auto none = CheckIdentity(Reference{.id = "one"}, Identity{});
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().text(), HasSubstr("its id is none"));
}

}  // namespace
}  // namespace platter
