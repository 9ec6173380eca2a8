// Opening and creating chains of real files, with qemu-img as the other maker and as the judge.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cow/create.h"
#include "cow/disk.h"
#include "io/engine/engine.h"

namespace platter {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kCluster = 64 * kKiB;

class OpenTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    folder_ = fs::canonical(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string At(const std::string& name) const { return (folder_ / name).string(); }

  void Put(const std::string& name, const std::string& content) {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(At(name), std::ios::binary) << content;
  }
  std::string Get(const std::string& name) {
    std::ifstream file(At(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  // Runs a command of qemu-utils in the folder.
  void Qemu(const std::string& command) {
    std::string line = "cd '" + folder_.string() + "' && " + command + " > log 2>&1";
    ASSERT_EQ(std::system(line.c_str()), 0)
        << command << ": " << Get("log") << " (if it is missing: apt-get install qemu-utils)";
  }

  Result<std::unique_ptr<Disk>> Open(const std::string& name, DiskOptions options = {}) {
    warnings_.clear();
    return Disk::Open(At(name), options, Gate(policy_), &warnings_);
  }
  std::string ErrorOf(const std::string& name, DiskOptions options = {}) {
    auto disk = Open(name, options);
    return disk ? "opened" : disk.error().text();
  }
  std::string Create(const std::string& name, const NewImageOptions& options) {
    warnings_.clear();
    auto image = NewImage::Create(At(name), options, Gate(policy_), &warnings_);
    if (!image) return image.error().text();
    Result<> committed = (*image)->Commit();
    return committed ? "" : committed.error().text();
  }
  static NewImageOptions Overlay(const std::string& parent, const std::string& format = "raw") {
    NewImageOptions options{.format = "qcow2", .size_from_parent = true};
    options.create.parent = Reference{Reference::kParent, parent, format};
    return options;
  }

  static std::string ReadText(Layer& layer, uint64_t at, size_t length) {
    std::string text(length, '?');
    auto read = Read(layer, at, std::as_writable_bytes(std::span(text)));
    EXPECT_TRUE(read.has_value()) << read.error().text();
    return text;
  }
  static void WriteText(Layer& layer, uint64_t at, std::string_view text) {
    auto written = Write(layer, at, AsBytes(text));
    EXPECT_TRUE(written.has_value()) << written.error().text();
  }

  fs::path folder_;
  GatePolicy policy_;
  std::vector<std::string> warnings_;
};

TEST_F(OpenTest, AChainOfThree) {
  Put("base.img", std::string(3 * kCluster, 'c'));
  Qemu("qemu-img create -q -f qcow2 -b base.img -F raw middle.qcow2 256k");
  Qemu("qemu-io -c 'write -P 98 64k 64k' middle.qcow2");
  Qemu("qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2");
  Qemu("qemu-io -c 'write -P 97 128k 10' top.qcow2");

  auto disk = Open("top.qcow2");
  ASSERT_TRUE(disk.has_value()) << disk.error().text();
  EXPECT_THAT(warnings_, IsEmpty());
  ASSERT_EQ((*disk)->depth(), 3u);
  EXPECT_EQ((*disk)->path(2), At("base.img"));
  EXPECT_EQ(ReadText(**disk, 0, 4 * kCluster),
            std::string(kCluster, 'c') + std::string(kCluster, 'b') + std::string(10, 'a') +
                std::string(kCluster - 10, 'c') + std::string(kCluster, '\0'));
  EXPECT_FALSE((*disk)->layer(1).info().writable);
  EXPECT_FALSE((*disk)->layer(2).info().writable);
}

TEST_F(OpenTest, ParentsStayAsTheyAre) {
  Put("base.img", std::string(2 * kCluster, 'c'));
  Qemu("qemu-img create -q -f qcow2 -b base.img -F raw top.qcow2");
  {
    auto disk = Open("top.qcow2", {.file = {.writable = true}});
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    WriteText(**disk, 100, "mine");
    ASSERT_TRUE(Zero(**disk, {kCluster, kCluster}, true).has_value());
    ASSERT_TRUE((*disk)->Flush().has_value());
  }
  EXPECT_TRUE(Get("base.img") == std::string(2 * kCluster, 'c'));
  Qemu("qemu-img check top.qcow2");
  Qemu("qemu-img convert -O raw top.qcow2 top.raw");
  std::string expected(kCluster, 'c');
  expected.replace(100, 4, "mine");
  EXPECT_TRUE(Get("top.raw") == expected + std::string(kCluster, '\0'));
}

TEST_F(OpenTest, GrowingOverALongerParent) {
  Put("base.img", std::string(4 * kCluster, 'c'));
  Qemu("qemu-img create -q -f qcow2 -b base.img -F raw top.qcow2 100k");
  {
    auto disk = Open("top.qcow2", {.file = {.writable = true}});
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    auto resized = (*disk)->resizer()->Resize(5 * kCluster, Preallocation::kOff);
    ASSERT_TRUE(resized.has_value()) << resized.error().text();
  }
  auto disk = Open("top.qcow2");
  EXPECT_TRUE(ReadText(**disk, 0, 5 * kCluster) ==
              std::string(100 * kKiB, 'c') + std::string(5 * kCluster - 100 * kKiB, '\0'));
  Qemu("qemu-img check top.qcow2");
}

TEST_F(OpenTest, AParentWithoutAFormat) {
  Put("base.img", std::string(kCluster, 'c'));
  NewImageOptions old{.format = "qcow2", .create = {.size = kCluster}, .open_parent = false};
  old.create.options = {{"compat", "0.10"}};
  old.create.parent = Reference{Reference::kParent, "base.img", ""};
  ASSERT_EQ(Create("old.qcow2", old), "");
  auto disk = Open("old.qcow2");
  ASSERT_TRUE(disk.has_value()) << disk.error().text();
  EXPECT_EQ(ReadText(**disk, 0, 1), "c");
  EXPECT_THAT(warnings_,
              ElementsAre(AllOf(HasSubstr("parent 'base.img'"), HasSubstr("it is raw"))));

  Put("base.img", "\x1f\x8b\x08 not a disk");
  EXPECT_THAT(ErrorOf("old.qcow2"), AllOf(HasSubstr("parent 'base.img'"), HasSubstr("gzip")));
}

TEST_F(OpenTest, TheRecordedFormatDecides) {
  Qemu("qemu-img create -q -f qcow2 inner.qcow2 64k");
  Qemu("qemu-img create -q -f qcow2 -b inner.qcow2 -F raw top.qcow2");
  auto disk = Open("top.qcow2");
  ASSERT_TRUE(disk.has_value()) << disk.error().text();
  EXPECT_EQ(ReadText(**disk, 0, 3), "QFI") << "raw means raw";
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("looks like qcow2")));
  Qemu("qemu-img create -q -u -f qcow2 -b inner.qcow2 -F bochs strange.qcow2 64k");
  EXPECT_THAT(ErrorOf("strange.qcow2"), HasSubstr("format 'bochs' is not supported"));
}

TEST_F(OpenTest, Loops) {
  NewImageOptions self{.format = "qcow2", .create = {.size = kCluster}, .open_parent = false};
  self.create.parent = Reference{Reference::kParent, "self.qcow2", "qcow2"};
  ASSERT_EQ(Create("self.qcow2", self), "");
  EXPECT_THAT(ErrorOf("self.qcow2"), HasSubstr("the chain comes back to"));
  Qemu("qemu-img create -q -u -f qcow2 -b b.qcow2 -F qcow2 a.qcow2 64k");
  Qemu("qemu-img create -q -u -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 64k");
  EXPECT_THAT(ErrorOf("a.qcow2"), HasSubstr("the chain comes back to"));
  fs::create_hard_link(At("a.qcow2"), At("c.qcow2"));
  EXPECT_THAT(ErrorOf("c.qcow2"), HasSubstr("the chain comes back to"));
  EXPECT_FALSE(ReadChainInfo(At("a.qcow2"), {}, Gate(policy_), true, nullptr).has_value());
  EXPECT_TRUE(Open("a.qcow2", {.no_backing = true}).has_value());
}

TEST_F(OpenTest, ChainsHaveAnEnd) {
  policy_.max_depth = 5;
  Put("0.img", std::string(512, 'x'));
  Qemu("qemu-img create -q -f qcow2 -b 0.img -F raw 1.qcow2");
  for (int i = 2; i <= 5; ++i) {
    Qemu(fmt::format("qemu-img create -q -u -f qcow2 -b {}.qcow2 -F qcow2 {}.qcow2 512", i - 1, i));
  }
  EXPECT_EQ((*Open("4.qcow2"))->depth(), 5u);
  EXPECT_THAT(ErrorOf("5.qcow2"), HasSubstr("longer than 5 images"));
}

TEST_F(OpenTest, TwoHundredAndOne) {
  NewImageOptions base{.format = "qcow2", .create = {.size = 4096}};
  ASSERT_EQ(Create("0.qcow2", base), "");
  for (int i = 1; i <= 200; ++i) {
    NewImageOptions next{.format = "qcow2", .create = {.size = 4096}, .open_parent = false};
    next.create.parent = Reference{Reference::kParent, fmt::format("{}.qcow2", i - 1), "qcow2"};
    ASSERT_EQ(Create(fmt::format("{}.qcow2", i), next), "");
  }
  auto deep = Open("199.qcow2");
  ASSERT_TRUE(deep.has_value()) << deep.error().text();
  EXPECT_EQ((*deep)->depth(), 200u);
  EXPECT_EQ(ReadText(**deep, 0, 4), std::string(4, '\0'));
  EXPECT_THAT(ErrorOf("200.qcow2"), HasSubstr("longer than 200 images"));
}

TEST_F(OpenTest, TheGateIsAskedForParentsAndDataFiles) {
  fs::create_directories(folder_ / "vm");
  Put("secret.img", std::string(512, 's'));
  Qemu("qemu-img create -q -f qcow2 -b ../secret.img -F raw vm/a.qcow2");
  EXPECT_THAT(ErrorOf("vm/a.qcow2"), HasSubstr("parent '../secret.img' is outside"));
  EXPECT_TRUE(Open("vm/a.qcow2", {.no_backing = true}).has_value());
  EXPECT_TRUE(Open("vm/a.qcow2", {.info_only = true}).has_value());
  policy_.trusted = {folder_.string()};
  EXPECT_TRUE(Open("vm/a.qcow2").has_value());
  policy_.trusted = {};

  // The parent's own parent is looked for where the parent is.
  fs::create_directories(folder_ / "vm/sub");
  Put("vm/sub/base.img", std::string(512, 'b'));
  Qemu("qemu-img create -q -f qcow2 -b base.img -F raw vm/sub/mid.qcow2");
  Qemu("qemu-img create -q -f qcow2 -b sub/mid.qcow2 -F qcow2 vm/top.qcow2");
  auto top = Open("vm/top.qcow2");
  ASSERT_TRUE(top.has_value()) << top.error().text();
  EXPECT_EQ(ReadText(**top, 0, 1), "b");

  Qemu("cd vm && qemu-img create -q -f qcow2 -o data_file=../data.img d.qcow2 64k");
  EXPECT_THAT(ErrorOf("vm/d.qcow2"), HasSubstr("data file '../data.img' is outside"));
  policy_.allow_external = true;
  EXPECT_TRUE(Open("vm/d.qcow2").has_value());
}

TEST_F(OpenTest, AnotherParent) {
  Put("base.img", std::string(512, 'b'));
  Put("other.img", std::string(512, 'o'));
  Qemu("qemu-img create -q -f qcow2 -b base.img -F raw top.qcow2");
  fs::remove(folder_ / "base.img");
  EXPECT_THAT(ErrorOf("top.qcow2"),
              AllOf(HasSubstr("parent 'base.img'"), HasSubstr("No such file")));
  auto disk = Open("top.qcow2", {.parent = At("other.img"), .parent_format = "raw"});
  ASSERT_TRUE(disk.has_value()) << disk.error().text();
  EXPECT_EQ(ReadText(**disk, 0, 1), "o");
}

TEST_F(OpenTest, ChainInfo) {
  Put("base.img", std::string(1000, 'b'));
  Qemu("qemu-img create -q -f qcow2 -b base.img -F raw top.qcow2 1M");
  auto chain = ReadChainInfo(At("top.qcow2"), {}, Gate(policy_), true, nullptr);
  ASSERT_TRUE(chain.has_value()) << chain.error().text();
  ASSERT_EQ(chain->size(), 2u);
  EXPECT_EQ(chain->at(0).info.format, "qcow2");
  EXPECT_EQ(chain->at(0).info.references.at(0).name, "base.img");
  EXPECT_EQ(chain->at(1).path, At("base.img"));
  EXPECT_EQ(chain->at(1).info.format, "raw");
  EXPECT_EQ(chain->at(1).info.size, 1000u);
  EXPECT_EQ(ReadChainInfo(At("top.qcow2"), {}, Gate(policy_), false, nullptr)->size(), 1u);
}

TEST_F(OpenTest, PartsInARow) {
  Put("disk.001", std::string(1000, 'a'));
  Put("disk:002", std::string(24, 'b'));
  Put("disk.003", std::string(500, 'c'));
  DiskOptions options{.format = "raw", .file = {.writable = true}};
  options.options["parts"] = At("disk\\:002") + ":" + At("disk.003");
  auto disk = Open("disk.001", options);
  ASSERT_TRUE(disk.has_value()) << disk.error().text();
  EXPECT_EQ((*disk)->info().size, 1524u);
  WriteText(**disk, 999, std::string(26, 'X'));
  EXPECT_EQ(Get("disk.001"), std::string(999, 'a') + "X");
  EXPECT_EQ(Get("disk:002"), std::string(24, 'X'));
  EXPECT_EQ(Get("disk.003"), "X" + std::string(499, 'c'));
  disk->reset();
  options.options["parts"] = At("disk.001");
  EXPECT_THAT(ErrorOf("disk.001", options), HasSubstr("comes back"));
}

TEST_F(OpenTest, RawByGuess) {
  Put("disk.img", std::string(kCluster, 'x'));
  {
    auto disk = Open("disk.img", {.file = {.writable = true}});
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    EXPECT_THAT(warnings_, ElementsAre(HasSubstr("-f raw")));
    auto written = Write(**disk, 0, AsBytes(std::string_view("QFI\xfb\0\0\0\3", 8)));
    ASSERT_FALSE(written.has_value());
    EXPECT_EQ(written.error().code(), Code::kRefused);
    WriteText(**disk, 0, "harmless");
  }
  EXPECT_EQ(Get("disk.img").substr(0, 8), "harmless");
  auto named = Open("disk.img", {.format = "raw", .file = {.writable = true}});
  EXPECT_THAT(warnings_, IsEmpty());
  WriteText(**named, 0, "KDMV");
}

TEST_F(OpenTest, CreateAnOverlay) {
  Put("base.img", std::string(kCluster + 5, 'b'));
  ASSERT_EQ(Create("over.qcow2", Overlay("base.img")), "");
  EXPECT_THAT(warnings_, IsEmpty());
  auto disk = Open("over.qcow2");
  ASSERT_TRUE(disk.has_value()) << disk.error().text();
  EXPECT_EQ((*disk)->depth(), 2u);
  EXPECT_TRUE(ReadText(**disk, 0, kCluster + 5) == std::string(kCluster + 5, 'b'));
  Qemu("qemu-img info over.qcow2 | grep 'backing file format: raw'");
  Qemu("qemu-img check over.qcow2");

  ASSERT_EQ(Create("again.qcow2", Overlay("over.qcow2", "")), "");
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("by its content it is qcow2")));
  Qemu("qemu-img info again.qcow2 | grep 'backing file format: qcow2'");
}

TEST_F(OpenTest, CreateWithOldNames) {
  Put("base.img", std::string(kCluster, 'b'));
  NewImageOptions options{.format = "qcow2"};
  options.create.options = {{"backing_file", "base.img"}, {"backing_fmt", "raw"}, {"size", "128k"}};
  ASSERT_EQ(Create("over.qcow2", options), "");
  auto disk = Open("over.qcow2");
  ASSERT_TRUE(disk.has_value()) << disk.error().text();
  EXPECT_EQ((*disk)->info().size, 2 * kCluster);
  EXPECT_EQ(ReadText(**disk, 0, 1), "b");
}

TEST_F(OpenTest, CreateFailsWithoutATrace) {
  EXPECT_THAT(Create("over.qcow2", Overlay("missing.img")), HasSubstr("parent 'missing.img'"));
  Put("base.img", "b");
  Put("over.qcow2", "precious");
  EXPECT_THAT(Create("over.qcow2", Overlay("base.img")), HasSubstr("over.qcow2"));
  EXPECT_EQ(Get("over.qcow2"), "precious");
  NewImageOptions self = Overlay("over.qcow2", "raw");
  self.replace = true;
  EXPECT_THAT(Create("over.qcow2", self), HasSubstr("comes back"));
  EXPECT_EQ(Get("over.qcow2"), "precious");
  NewImageOptions odd{.format = "qcow2", .create = {.size = 1000, .options = {{"colour", "red"}}}};
  EXPECT_THAT(Create("odd.qcow2", odd), HasSubstr("colour"));
  {
    auto dropped =
        NewImage::Create(At("dropped.img"), {.create = {.size = 5}}, Gate(policy_), nullptr);
  }
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_))
    names.push_back(entry.path().filename());
  EXPECT_THAT(names, testing::UnorderedElementsAre("base.img", "over.qcow2"));
}

TEST_F(OpenTest, CreateReplaces) {
  Put("disk.img", "old");
  NewImageOptions options{.create = {.size = 1000}, .replace = true};
  ASSERT_EQ(Create("disk.img", options), "");
  EXPECT_EQ(Get("disk.img"), std::string(1000, '\0'));
}

TEST_F(OpenTest, CreateOverAParentElsewhere) {
  fs::create_directories(folder_ / "vm");
  Put("base.img", std::string(512, 'b'));
  ASSERT_EQ(Create("vm/over.qcow2", Overlay(At("base.img"))), "");
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("going to need --trust")));
  EXPECT_THAT(ErrorOf("vm/over.qcow2"), HasSubstr("is outside"));
  policy_.trusted = {folder_.string()};
  EXPECT_TRUE(Open("vm/over.qcow2").has_value());
  // What the parent names is not the user's choice.
  policy_.trusted = {};
  fs::create_directories(folder_ / "else");
  Qemu("qemu-img create -q -f qcow2 -b ../base.img -F raw else/mid.qcow2");
  EXPECT_THAT(Create("vm/top.qcow2", Overlay("../else/mid.qcow2", "qcow2")),
              HasSubstr("'../base.img' is outside"));
}

TEST_F(OpenTest, CreateWithADataFile) {
  NewImageOptions options{.format = "qcow2", .create = {.size = 4 * kCluster}};
  options.create.options = {{"data_file", "disk.data"}, {"data_file_raw", "on"}};
  {
    auto image = NewImage::Create(At("disk.qcow2"), options, Gate(policy_), &warnings_);
    ASSERT_TRUE(image.has_value()) << image.error().text();
    EXPECT_TRUE((*image)->starts_zero());
    WriteText((*image)->disk(), kCluster, "payload");
    EXPECT_FALSE(fs::exists(folder_ / "disk.data"));
    ASSERT_TRUE((*image)->Commit().has_value());
  }
  EXPECT_EQ(Get("disk.data").substr(kCluster, 7), "payload");
  EXPECT_EQ(ReadText(**Open("disk.qcow2"), kCluster, 7), "payload");
  Qemu("qemu-img check disk.qcow2");
  fs::remove(folder_ / "disk.qcow2");
  EXPECT_THAT(Create("disk.qcow2", options), HasSubstr("disk.data")) << "it is somebody's";
  EXPECT_FALSE(fs::exists(folder_ / "disk.qcow2"));
}

}  // namespace
}  // namespace platter
