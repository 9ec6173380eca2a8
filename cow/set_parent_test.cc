// Another parent for an image of each format that has parents: recorded, kept over writes, and at
// no moment of a power cut anything but the old one or the new one.
#include "cow/set_parent.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <array>
#include <set>

#include "formats/format.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/interop/qemu.h"

namespace platter {
namespace {

using testing_support::MustRun;

constexpr uint64_t kSize = 4 * kMiB;

struct Case {
  std::string name, format;
  std::map<std::string, std::string> options;
  bool may_lose_parent;  // set_parent takes none as well
};

std::vector<Case> Cases() {
  return {{"qcow2", "qcow2", {}, true},
          {"qcow2 v2", "qcow2", {{"compat", "0.10"}}, true},
          {"qcow2 small clusters", "qcow2", {{"cluster_size", "512"}}, true},
          {"vmdk", "vmdk", {}, true},
          {"vdi", "vdi", {}, true},
          {"vhdx", "vhdx", {}, false},
          {"vpc", "vpc", {}, false}};
}

class SetParentTest : public testing::TestWithParam<Case> {
 protected:
  const Format& format() const { return **FindFormat(GetParam().format); }

  // An image that could be a parent, as it would have been found at `name`.
  ParentFile Parent(const std::string& name) {
    MemoryStore store;
    EXPECT_TRUE(format().create(store, {.size = kSize}).has_value());
    auto layer = format().open(std::make_unique<WrapperStore>(store), {});
    EXPECT_TRUE(layer.has_value());
    return {.path = "/images/" + name,
            .relative = name,
            .modified = 1'700'000'000,
            .info = (*layer)->info()};
  }

  // A child of `parent` that holds something.
  std::unique_ptr<MemoryStore> Child(const ParentFile& parent) {
    auto store = std::make_unique<MemoryStore>();
    CreateOptions create{.size = kSize, .options = GetParam().options};
    create.parent = ReferenceTo(parent);
    create.parent_file = parent;
    auto created = format().create(*store, create);
    EXPECT_TRUE(created.has_value()) << created.error().text();
    Put(*store, 'a');
    return store;
  }

  Reference ReferenceTo(const ParentFile& parent) {
    return {Reference::kParent, parent.relative, parent.info.format};
  }

  void Put(Store& store, char value) {
    auto layer = format().open(std::make_unique<WrapperStore>(store), {.writable = true});
    ASSERT_TRUE(layer.has_value()) << layer.error().text();
    std::vector<std::byte> bytes(4096, static_cast<std::byte>(value));
    ASSERT_TRUE(Write(**layer, kMiB, ConstBytes(bytes)).has_value());
    ASSERT_TRUE((*layer)->Flush().has_value());
  }

  // By which the image knows its parent: the part that tells these from one another.
  std::string ParentIn(Store& store) {
    auto layer = format().open(std::make_unique<WrapperStore>(store), {.info_only = true});
    if (!layer) return layer.error().text();
    const Reference* parent = ParentOf((*layer)->info());
    if (!parent) return "none";
    if (GetParam().format == "vdi") return parent->id;
    const std::string path = parent->paths.empty() ? parent->name : parent->paths[0];
    return path.substr(path.rfind('/') + 1);
  }
  std::string Told(const ParentFile& parent) {
    return GetParam().format == "vdi" ? parent.info.identity.id : parent.relative;
  }

  // Nothing is wrong with the image, and it holds what Put put.
  std::string Judge(Store& store, char value) {
    // A copy of a footer that is behind its original is put right; nothing else is wrong.
    auto repaired = format().check(store, {.writable = true}, {.repair = CheckOptions::kAll});
    if (!repaired) return repaired.error().text();
    if (repaired->corruptions > 1) return repaired->findings[0].text;
    auto report = format().check(store, {}, {});
    if (!report) return report.error().text();
    if (report->corruptions + report->errors > 0) return report->findings[0].text;
    auto layer = format().open(std::make_unique<WrapperStore>(store), {});
    if (!layer) return layer.error().text();
    std::vector<std::byte> bytes(4096);
    auto read = Read(**layer, kMiB, Bytes(bytes));
    if (!read) return read.error().text();
    return bytes[0] == static_cast<std::byte>(value) && bytes == std::vector(4096, bytes[0])
               ? ""
               : "the content changed";
  }

  // Each moment of `change`, which begins with the parent `before`.
  void ExpectOldOrNew(const MemoryStore& start, const std::string& before, const std::string& after,
                      const std::optional<ParentFile>& parent) {
    CrashRecorder recorder;
    auto store = recorder.NewStore(start);
    std::optional<Reference> reference;
    if (parent) reference = ReferenceTo(*parent);
    auto set = format().set_parent(*store, {.writable = true}, reference, parent);
    ASSERT_TRUE(set.has_value()) << set.error().text();
    std::set<std::string> seen;
    for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
      for (uint64_t seed = 0; seed < 12; ++seed) {
        auto disk = recorder.Crash(cut, seed);
        const std::string now = ParentIn(*disk);
        seen.insert(now);
        ASSERT_TRUE(now == before || now == after) << now << ", cut " << cut << ", seed " << seed;
        ASSERT_EQ(Judge(*disk, 'a'), "") << "cut " << cut << ", seed " << seed;
      }
    }
    EXPECT_EQ(seen.size(), before == after ? 1 : 2);
    auto end = recorder.Crash(recorder.boundary(), 0);
    EXPECT_EQ(ParentIn(*end), after);
  }
};

TEST_P(SetParentTest, IsOldOrNewAtEachMoment) {
  const std::string suffix = "." + GetParam().format;
  std::vector<ParentFile> parents{Parent("one" + suffix), Parent("another one" + suffix),
                                  Parent(std::string(200, 'x') + suffix), Parent("y" + suffix)};
  auto image = Child(parents[0]);
  for (size_t i = 0; i + 1 < parents.size(); ++i) {
    ASSERT_EQ(ParentIn(*image), Told(parents[i]));
    ExpectOldOrNew(*image, Told(parents[i]), Told(parents[i + 1]), parents[i + 1]);
    auto set = format().set_parent(*image, {.writable = true}, ReferenceTo(parents[i + 1]),
                                   parents[i + 1]);
    ASSERT_TRUE(set.has_value()) << set.error().text();
  }
}

TEST_P(SetParentTest, NoneIsRecordedOrRefused) {
  auto parent = Parent("one." + GetParam().format);
  auto image = Child(parent);
  if (GetParam().may_lose_parent) {
    ExpectOldOrNew(*image, Told(parent), "none", std::nullopt);
    return;
  }
  auto set = format().set_parent(*image, {.writable = true}, std::nullopt, std::nullopt);
  ASSERT_FALSE(set.has_value());
  EXPECT_EQ(set.error().code(), Code::kUnsupported);
  EXPECT_EQ(ParentIn(*image), Told(parent));
}

// What is written afterwards does not bring the old parent back.
TEST_P(SetParentTest, LaterWritesKeepIt) {
  auto image = Child(Parent("one." + GetParam().format));
  auto second = Parent("quite another name." + GetParam().format);
  auto set = format().set_parent(*image, {.writable = true}, ReferenceTo(second), second);
  ASSERT_TRUE(set.has_value()) << set.error().text();
  for (char value : {'b', 'c'}) {
    Put(*image, value);
    EXPECT_EQ(ParentIn(*image), Told(second));
    EXPECT_EQ(Judge(*image, value), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, SetParentTest, testing::ValuesIn(Cases()), [](const auto& info) {
  std::string name;
  for (char c : info.param.name) {
    if (std::isalnum(static_cast<unsigned char>(c))) name += c;
  }
  return name;
});

// Names of any length, one after the other: there is always room for the next.
TEST(SetParent, LongNamesInQcow2ChangePlaces) {
  const Format& format = **FindFormat("qcow2");
  MemoryStore store;
  CreateOptions create{.size = kMiB};
  create.parent = Reference{Reference::kParent, "first", "raw"};
  ASSERT_TRUE(format.create(store, create).has_value());
  for (size_t i = 0; i < 300; ++i) {
    const std::string name(i * 37 % 1000 + 1, static_cast<char>('a' + i % 26));
    Reference parent{Reference::kParent, name, i % 3 == 0 ? "" : "raw"};
    auto set = format.set_parent(store, {.writable = true}, parent, std::nullopt);
    ASSERT_TRUE(set.has_value()) << i << ": " << set.error().text();
    auto layer = format.open(std::make_unique<WrapperStore>(store), {.info_only = true});
    ASSERT_TRUE(layer.has_value()) << layer.error().text();
    ASSERT_EQ(ParentOf((*layer)->info())->name, name);
    ASSERT_EQ(ParentOf((*layer)->info())->format, parent.format);
  }
}

// A chain may consist of URLs; the name beside the first image is one then.
TEST(FindInChain, KnowsUrls) {
  struct Web final : UrlOpener {
    std::span<const std::string_view> schemes() const override { return names; }
    bool has_folders() const override { return true; }
    Result<std::unique_ptr<Store>> Open(const std::string&, bool) const override {
      return Fail(Code::kIo, "not there");
    }
    std::array<std::string_view, 1> names = {"web"};
  };
  GatePolicy policy;
  policy.urls = {std::make_shared<Web>()};
  const Gate gate(policy);
  std::vector<ChainEntry> entries(3);
  for (size_t i = 0; i < 3; ++i) entries[i].path = fmt::format("web://host/folder/{}.img", i);
  EXPECT_EQ(FindInChain(entries, "web://host/folder/2.img", gate).value_or(0), 2u);
  EXPECT_EQ(FindInChain(entries, "1.img", gate).value_or(0), 1u);
  EXPECT_FALSE(FindInChain(entries, "web://host/2.img", gate).has_value());
}

// QEMU reads what we recorded.
TEST(SetParent, QemuSeesIt) {
  testing_support::TempFolder folder;
  for (std::string format : {"qcow2", "vmdk"}) {
    const std::string a = folder.File("a." + format), b = folder.File("b." + format),
                      top = folder.File("top." + format);
    MustRun(
        fmt::format("qemu-img create -q -f {0} {1} 4M && qemu-img create -q -f {0} {2} 4M && "
                    "qemu-io -f {0} -c 'write -P 7 0 64k' {1} && "
                    "qemu-io -f {0} -c 'write -P 8 0 64k' {2} && "
                    "qemu-img create -q -f {0} -b {1} -F {0} {3}",
                    format, a, b, top));
    Gate gate(GatePolicy{});
    Reference parent{Reference::kParent, "b." + format, format};
    auto parents = Disk::OpenParents(top, parent, {}, gate, nullptr);
    ASSERT_TRUE(parents.has_value()) << parents.error().text();
    auto file = LookAtParent(**parents, top, gate);
    ASSERT_TRUE(file.has_value());
    auto set = SetParent(top, {.format = format}, gate, parent, *file);
    ASSERT_TRUE(set.has_value()) << set.error().text();
    EXPECT_NE(MustRun("qemu-img info " + top).find("b." + format), std::string::npos);
    MustRun(fmt::format("qemu-io -r -f {} -c 'read -P 8 0 64k' {}", format, top));
  }
}

}  // namespace
}  // namespace platter
