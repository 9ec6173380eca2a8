#include "cow/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace platter {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::string_literals;

// A folder of images, and beside it one that images have no business with:
//
//   vm/image.qcow2  vm/base.img  vm/below/deep.img  outside/secret.img  store/golden.img
class GateTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) /
            testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    for (const char* file : {"vm/image.qcow2", "vm/base.img", "vm/below/deep.img",
                             "outside/secret.img", "store/golden.img"}) {
      fs::create_directories((root_ / file).parent_path());
      std::ofstream(root_ / file) << file;
    }
    root_ = fs::canonical(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string At(const std::string& path) const { return (root_ / path).string(); }

  // The path below the root that `name` in `image` leads to, or the error.
  std::string Resolve(const std::string& name, const std::string& image = "vm/image.qcow2") {
    auto path = Gate(policy_).Resolve(At(image), Reference{Reference::kParent, name, "raw"});
    if (!path) return path.error().text();
    EXPECT_TRUE(path->starts_with(root_.string() + "/")) << *path;
    return path->substr(root_.string().size() + 1);
  }
  Code CodeOf(const std::string& name) {
    auto path =
        Gate(policy_).Resolve(At("vm/image.qcow2"), Reference{Reference::kParent, name, ""});
    EXPECT_FALSE(path.has_value()) << *path;
    return path ? Code::kIo : path.error().code();
  }

  fs::path root_;
  GatePolicy policy_;
};

TEST_F(GateTest, TriesThePathsOfAReferenceInTheirOrder) {
  Reference reference{Reference::kParent, "C:\\vm\\base.img", "vhdx"};
  reference.paths = {"gone.img", "../outside/secret.img", "base.img", "below/deep.img"};
  auto path = Gate(policy_).Resolve(At("vm/image.qcow2"), reference);
  ASSERT_TRUE(path) << path.error().text();
  EXPECT_EQ(*path, At("vm/base.img"));

  reference.paths = {"gone.img", "../outside/secret.img"};
  path = Gate(policy_).Resolve(At("vm/image.qcow2"), reference);
  ASSERT_FALSE(path);
  EXPECT_EQ(path.error().errno_value(), ENOENT) << "the first path's error is told";
}

TEST_F(GateTest, SearchedDirectoriesAreTrusted) {
  EXPECT_EQ(CodeOf("../store/golden.img"), Code::kRefused);
  policy_.search = {At("store")};
  EXPECT_EQ(Resolve("../store/golden.img"), "store/golden.img");
}

TEST_F(GateTest, AllowsTheOwnDirectoryAndBelow) {
  EXPECT_EQ(Resolve("base.img"), "vm/base.img");
  EXPECT_EQ(Resolve("./base.img"), "vm/base.img");
  EXPECT_EQ(Resolve("below/deep.img"), "vm/below/deep.img");
  EXPECT_EQ(Resolve("below/../base.img"), "vm/base.img");
  EXPECT_EQ(Resolve("../vm/base.img"), "vm/base.img");
  EXPECT_EQ(Resolve(At("vm/base.img")), "vm/base.img");
  EXPECT_EQ(Resolve("file:base.img"), "vm/base.img");
  EXPECT_EQ(Resolve("file://" + At("vm/base.img")), "vm/base.img");
}

TEST_F(GateTest, RefusesWhatIsOutside) {
  for (const std::string& name :
       {"../outside/secret.img"s, At("outside/secret.img"), "/etc/passwd"s, "file:/etc/passwd"s,
        "below/../../outside/secret.img"s, "../../../../../../../../../etc/passwd"s, "/"s, ".."s}) {
    EXPECT_THAT(Resolve(name),
                AllOf(HasSubstr("parent '"), HasSubstr("--trust"), HasSubstr("--allow-external")))
        << name;
    EXPECT_EQ(CodeOf(name), Code::kRefused) << name;
  }
  EXPECT_THAT(
      Resolve("/etc/passwd"),
      HasSubstr("parent '/etc/passwd' is outside the image's directory; give --trust DIR or "
                "--allow-external if you mean it"));
}

TEST_F(GateTest, AnotherDirectoryThatBeginsWithTheName) {
  fs::create_directories(root_ / "vm-private");
  std::ofstream(root_ / "vm-private/x.img") << "x";
  EXPECT_THAT(Resolve("../vm-private/x.img"), HasSubstr("outside"));
}

TEST_F(GateTest, TellsNothingAboutFilesOutside) {
  EXPECT_THAT(Resolve("/no/such/file"), HasSubstr("outside"));
  EXPECT_THAT(Resolve("../outside/no-such.img"), HasSubstr("outside"));
  EXPECT_THAT(Resolve("no-such.img"), HasSubstr("No such file"));
  EXPECT_EQ(CodeOf("no-such.img"), Code::kIo);
}

TEST_F(GateTest, FollowsSymbolicLinksFirst) {
  fs::create_symlink(root_ / "outside/secret.img", root_ / "vm/innocent.img");
  fs::create_symlink(root_ / "outside", root_ / "vm/dir");
  fs::create_symlink(root_ / "vm/base.img", root_ / "vm/alias.img");
  fs::create_symlink("loop.img", root_ / "vm/loop.img");
  EXPECT_THAT(Resolve("innocent.img"), HasSubstr("outside"));
  EXPECT_THAT(Resolve("dir/secret.img"), HasSubstr("outside"));
  EXPECT_THAT(Resolve("dir/no-such.img"), HasSubstr("outside"));
  EXPECT_EQ(Resolve("alias.img"), "vm/base.img");
  EXPECT_EQ(CodeOf("loop.img"), Code::kIo);
}

TEST_F(GateTest, AnImageUnderAnotherName) {
  fs::create_symlink(root_ / "vm/image.qcow2", root_ / "outside/latest.qcow2");
  // Relative to the name that the user gave; allowed are its directory and the real one.
  EXPECT_EQ(Resolve("secret.img", "outside/latest.qcow2"), "outside/secret.img");
  EXPECT_EQ(Resolve(At("vm/base.img"), "outside/latest.qcow2"), "vm/base.img");
  EXPECT_THAT(Resolve(At("store/golden.img"), "outside/latest.qcow2"), HasSubstr("outside"));
}

TEST_F(GateTest, AnImageInTheWorkingDirectory) {
  fs::path before = fs::current_path();
  fs::current_path(root_ / "vm");
  auto path = Gate(policy_).Resolve("image.qcow2", {Reference::kParent, "base.img", "raw"});
  fs::current_path(before);
  ASSERT_TRUE(path.has_value()) << path.error().text();
  EXPECT_EQ(*path, At("vm/base.img"));
}

TEST_F(GateTest, TrustedDirectories) {
  policy_.trusted = {At("no-such-directory"), "", At("store")};
  EXPECT_EQ(Resolve("../store/golden.img"), "store/golden.img");
  EXPECT_THAT(Resolve("../outside/secret.img"), HasSubstr("outside"));
  fs::create_symlink(root_ / "store", root_ / "shop");
  policy_.trusted = {At("shop/")};
  EXPECT_EQ(Resolve(At("store/golden.img")), "store/golden.img");
  policy_.trusted = {"/"};
  EXPECT_EQ(Resolve(At("outside/secret.img")), "outside/secret.img");
}

TEST_F(GateTest, TrustFromTheEnvironment) {
  ::setenv("PLATTER_TRUST", (":" + At("store") + "::/nowhere").c_str(), 1);
  policy_ = GatePolicy::FromEnvironment();
  ::unsetenv("PLATTER_TRUST");
  EXPECT_THAT(policy_.trusted, ElementsAre(At("store"), "/nowhere"));
  EXPECT_EQ(Resolve("../store/golden.img"), "store/golden.img");
  EXPECT_TRUE(GatePolicy::FromEnvironment().trusted.empty());
}

TEST_F(GateTest, AllowExternal) {
  policy_.allow_external = true;
  EXPECT_EQ(Resolve("../outside/secret.img"), "outside/secret.img");
  EXPECT_EQ(CodeOf("/no/such/file"), Code::kIo);
}

TEST_F(GateTest, RefusesWhatIsNoFileName) {
  policy_.allow_external = true;
  EXPECT_THAT(Resolve(""), HasSubstr("empty"));
  EXPECT_THAT(Resolve("file:"), HasSubstr("empty"));
  EXPECT_THAT(Resolve("base.img\0.txt"s), HasSubstr("NUL"));
  EXPECT_THAT(Resolve("json:{\"driver\":"), HasSubstr("JSON"));
  EXPECT_THAT(Resolve("nbd://127.0.0.1:1/x"), HasSubstr("'nbd:' names a protocol"));
  EXPECT_THAT(Resolve("http://127.0.0.1:1/x"), HasSubstr("'http:' names a protocol"));
  EXPECT_THAT(Resolve("fat:rw:."), HasSubstr("'fat:' names a protocol"));
  EXPECT_THAT(Resolve(std::string(5000, 'x')), HasSubstr("more than a path can have"));
  for (const std::string& name : {""s, "a\0b"s, "json:{}"s, "ssh://x"s}) {
    EXPECT_EQ(CodeOf(name), Code::kRefused);
  }
  std::ofstream(root_ / "vm/a:b.img") << "x";
  EXPECT_EQ(Resolve("./a:b.img"), "vm/a:b.img");
  EXPECT_EQ(Resolve("file:a:b.img"), "vm/a:b.img");
}

TEST_F(GateTest, NamesArePrintedHarmlessly) {
  std::string error = Resolve("\xff\xfe\x1b[31m");
  EXPECT_THAT(error, HasSubstr("\\xff\\xfe\\x1b[31m"));
  EXPECT_EQ(error.find('\x1b'), error.npos);
}

TEST_F(GateTest, RefusesWhatIsNoFile) {
  EXPECT_THAT(Resolve("below"), HasSubstr("is a directory"));
  EXPECT_EQ(CodeOf("."), Code::kRefused);
  ASSERT_EQ(::mkfifo(At("vm/fifo").c_str(), 0600), 0);
  EXPECT_THAT(Resolve("fifo"), HasSubstr("neither a file nor a block device"));
  policy_.allow_external = true;
  EXPECT_EQ(CodeOf("/dev/zero"), Code::kRefused);
  EXPECT_EQ(CodeOf("/dev/fdset/0"), Code::kIo) << "there is no such file";
  policy_.allow_external = false;
  EXPECT_THAT(Resolve("/dev/zero"), HasSubstr("outside"));
  EXPECT_THAT(Resolve("/dev/fdset/0"), HasSubstr("outside"));
}

TEST_F(GateTest, DataFilesAreOpenedOnce) {
  Gate gate(policy_);
  std::set<FileId> seen = {*IdentifyFile(At("vm/image.qcow2"))};
  ReferenceOpener opener(gate, At("vm/image.qcow2"), {}, seen);
  auto data = opener.OpenReference({Reference::kData, "base.img", ""}, false);
  ASSERT_TRUE(data.has_value()) << data.error().text();
  EXPECT_EQ(*(*data)->Size(), 11u);
  EXPECT_FALSE((*data)->writable());
  EXPECT_EQ(seen.size(), 2u);

  fs::create_hard_link(root_ / "vm/image.qcow2", root_ / "vm/twin.img");
  for (const char* name : {"image.qcow2", "twin.img", "base.img"}) {
    auto again = opener.OpenReference({Reference::kData, name, ""}, true);
    ASSERT_FALSE(again.has_value()) << name;
    EXPECT_EQ(again.error().code(), Code::kRefused);
    EXPECT_THAT(again.error().text(), HasSubstr("already uses"));
  }
  auto outside = opener.OpenReference({Reference::kData, "/etc/passwd", ""}, true);
  ASSERT_FALSE(outside.has_value());
  EXPECT_THAT(outside.error().text(), HasSubstr("data file '/etc/passwd' is outside"));
}

TEST_F(GateTest, OpensWhatTheUserNames) {
  FileOptions write{.writable = true};
  auto file = Gate::OpenFile(At("outside/secret.img"), write);
  ASSERT_TRUE(file.has_value()) << file.error().text();
  EXPECT_TRUE((*file)->writable());
  EXPECT_EQ(Gate::OpenFile(At("vm"), {}).error().code(), Code::kRefused);
  EXPECT_EQ(Gate::OpenFile(At("vm/none"), {}).error().code(), Code::kIo);
}

// Knows one scheme and opens nothing.
class FakeOpener final : public UrlOpener {
 public:
  FakeOpener(std::string_view scheme, bool has_folders)
      : scheme_{scheme}, has_folders_(has_folders) {}
  std::span<const std::string_view> schemes() const override { return scheme_; }
  bool has_folders() const override { return has_folders_; }
  Result<std::unique_ptr<Store>> Open(const std::string& url, bool) const override {
    return Fail(Code::kIo, "opening {}", url);
  }

 private:
  const std::string_view scheme_[1];
  const bool has_folders_;
};

TEST_F(GateTest, UrlsAreForUsers) {
  policy_.urls = {std::make_shared<FakeOpener>("web", true),
                  std::make_shared<FakeOpener>("flat", false)};
  EXPECT_EQ(Gate(policy_).Open("WEB://h/a", {}).error().text(), "opening WEB://h/a");
  auto unknown = Gate(policy_).Open("other://h/a", {});
  EXPECT_EQ(unknown.error().code(), Code::kUnsupported);
  EXPECT_THAT(unknown.error().text(), HasSubstr("known: web flat"));
  EXPECT_NE(*Gate(policy_).Identify("web://h/a"), *Gate(policy_).Identify("web://h/b"));

  const std::string image = At("vm/image.qcow2");
  const Reference there{Reference::kParent, "web://h/a", ""};
  auto path = Gate(policy_).Resolve(image, there);
  ASSERT_FALSE(path.has_value()) << *path;
  EXPECT_EQ(path.error().code(), Code::kRefused);
  EXPECT_THAT(path.error().text(), HasSubstr("--allow-external"));
  policy_.allow_external = true;
  EXPECT_EQ(*Gate(policy_).Resolve(image, there), "web://h/a");
}

TEST_F(GateTest, ImagesFromUrlsNameWhatIsBesideThem) {
  policy_.urls = {std::make_shared<FakeOpener>("web", true),
                  std::make_shared<FakeOpener>("flat", false)};
  auto resolve = [&](const std::string& name, const std::string& image) {
    auto path = Gate(policy_).Resolve(image, Reference{Reference::kParent, name, ""});
    return path ? *path : path.error().text();
  };
  EXPECT_EQ(resolve("b.img", "web://h/d/a.img?token=1"), "web://h/d/b.img");
  EXPECT_EQ(resolve("e/b.img", "web://h/d/a.img"), "web://h/d/e/b.img");
  EXPECT_THAT(resolve("../b.img", "web://h/d/a.img"), HasSubstr("leads out of"));
  EXPECT_THAT(resolve("/etc/passwd", "web://h/d/a.img"), HasSubstr("--allow-external"));
  EXPECT_THAT(resolve("b.img", "flat://h/d/a.img"), HasSubstr("lies in no folder"));
  EXPECT_THAT(resolve("web://h/d/b.img", "web://h/d/a.img"), HasSubstr("--allow-external"));
}

}  // namespace
}  // namespace platter
