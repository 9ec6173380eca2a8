#include "tests/arrows/arrows.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

namespace platter::arrows {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Check on one made-up file with one include.
std::vector<std::string> CheckOne(const std::string& path, const std::string& header) {
  return Check({{path, "#include \"" + header + "\"\n"}});
}

TEST(IncludesOf, FindsDirectivesAndSkipsComments) {
  auto includes = IncludesOf(
      "// #include \"no/a.h\"\n"
      "#include \"io/store.h\"\n"
      "  #  include <vector> // why\n"
      "/* a comment\n"
      "#include \"no/b.h\"\n"
      "*/\n"
      "auto s = \"#include\"; /* short */\n"
      "#include \"io/layer.h\"");
  ASSERT_EQ(includes.size(), 3u);
  EXPECT_EQ(includes[0].path, "io/store.h");
  EXPECT_EQ(includes[0].line, 2);
  EXPECT_TRUE(includes[0].quoted);
  EXPECT_EQ(includes[1].path, "vector");
  EXPECT_FALSE(includes[1].quoted);
  EXPECT_EQ(includes[2].path, "io/layer.h");
  EXPECT_EQ(includes[2].line, 8);
}

TEST(Check, AllowsTheTable) {
  const std::pair<const char*, const char*> allowed[] = {
      {"base/a.h", "base/b.h"},
      {"io/a.h", "base/b.h"},
      {"io/codec/a.cc", "base/b.h"},
      {"io/codec/a.h", "io/layer.h"},
      {"io/engine/a.cc", "io/codec/b.h"},
      {"formats/qcow2/qcow2_layer.cc", "formats/qcow2/qcow2.h"},
      {"formats/qcow2/qcow2_layer.cc", "formats/format.h"},
      {"formats/vmdk/vmdk_layer.cc", "io/store.h"},
      {"cow/disk.cc", "formats/qcow2/qcow2.h"},
      {"cow/disk.cc", "io/engine/engine.h"},
      {"nbd/server.cc", "cow/disk.h"},
      {"nbd/plugin/plugin.cc", "nbd/session.h"},
      {"tools/platter.cc", "nbd/server.h"},
      {"tests/model_test.cc", "tools/console.h"},
      {"formats/raw/raw_test.cc", "io/engine/engine.h"},
      {"io/testing/toy_layer.h", "io/codec/cipher.h"},
      {"io/store_test.cc", "io/testing/toy_layer.h"},
      {"base/a.cc", "third_party/thing.h"},
  };
  for (const auto& [path, header] : allowed) EXPECT_THAT(CheckOne(path, header), IsEmpty());
}

TEST(Check, RefusesEverythingElse) {
  const std::pair<const char*, const char*> refused[] = {
      {"base/a.h", "io/store.h"},
      {"io/a.h", "io/engine/engine.h"},
      {"io/a.h", "formats/format.h"},
      {"io/codec/a.cc", "io/store.h"},
      {"io/engine/a.cc", "formats/format.h"},
      {"formats/qcow2/a.cc", "formats/raw/raw.h"},
      {"formats/format.h", "formats/raw/raw.h"},
      {"formats/qcow2/a.cc", "cow/disk.h"},
      {"formats/qcow2/a.cc", "io/engine/engine.h"},
      {"formats/qcow2/qcow2_disk.h", "io/layer.h"},
      {"formats/qcow2/qcow2_parse.cc", "io/store.h"},
      {"cow/disk.cc", "nbd/server.h"},
      {"nbd/a.cc", "fuse/b.h"},
      {"fuse/a.cc", "runner/vmm/b.h"},
      {"runner/p2v/a.cc", "nbd/b.h"},
      {"nbd/a.cc", "formats/qcow2/qcow2.h"},
      {"nbd/a.cc", "tools/console.h"},
      {"tools/a.cc", "tests/model.h"},
      {"tools/a.cc", "base/fault_testing.h"},
      {"tools/a.cc", "io/testing/toy_layer.h"},
      {"io/a.cc", "store.h"},
      {"io/a.cc", "../base/math.h"},
  };
  for (const auto& [path, header] : refused) {
    EXPECT_THAT(CheckOne(path, header), ElementsAre(HasSubstr(fmt::format("{}:1: ", path))))
        << header;
  }
}

TEST(Check, RefusesSystemHeadersInBase) {
  EXPECT_THAT(Check({{"base/a.cc", "#include <vector>\n#include <sys/uio.h>\n"}}),
              ElementsAre(HasSubstr("base/a.cc:2: ")));
  EXPECT_THAT(Check({{"io/a.cc", "#include <sys/uio.h>\n"}}), IsEmpty());
}

TEST(Check, RefusesUnknownRoomsAndLongFiles) {
  EXPECT_THAT(Check({{"cellar/a.cc", ""}}), ElementsAre(HasSubstr("in no room")));
  EXPECT_THAT(Check({{"base/a.cc", std::string(800, '\n')}}), IsEmpty());
  EXPECT_THAT(Check({{"base/a.cc", std::string(801, '\n')}}),
              ElementsAre(HasSubstr("longer than 800")));
  EXPECT_THAT(
      Check({{"third_party/x/a.cc", "#include \"y.h\"\n"}, {"docs/a.md", "#include \"y\""}}),
      IsEmpty());
}

// The repository, found through the one file of it that Bazel hands to this test.
fs::path Root() { return fs::canonical("WORKSPACE").parent_path(); }

std::vector<SourceFile> AllSources(const fs::path& root) {
  std::vector<SourceFile> files;
  for (auto it = fs::recursive_directory_iterator(root); it != fs::end(it); ++it) {
    const std::string path = it->path().lexically_relative(root).string();
    if (it->is_symlink()) continue;
    if (it->is_directory()) {
      if (path.starts_with('.') || path.starts_with("bazel-")) it.disable_recursion_pending();
      continue;
    }
    if (!IsSource(path)) continue;
    std::ifstream in(it->path(), std::ios::binary);
    files.push_back({path, {std::istreambuf_iterator<char>(in), {}}});
  }
  return files;
}

TEST(Repository, KeepsTheArrows) {
  auto files = AllSources(Root());
  std::set<std::string> paths;
  for (const auto& file : files) paths.insert(file.path);
  // The walk sees the real tree: this very file, and the bottom room.
  ASSERT_TRUE(paths.contains("tests/arrows_test.cc")) << Root();
  ASSERT_TRUE(paths.contains("base/result.h")) << Root();
  EXPECT_THAT(Check(files), IsEmpty());
}

}  // namespace
}  // namespace platter::arrows
