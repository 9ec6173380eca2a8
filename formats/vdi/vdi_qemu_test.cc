// With QEMU's tools as judges, and whole chains through cow/: files on disk, found by their UUIDs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cow/create.h"
#include "cow/disk.h"
#include "formats/options.h"
#include "formats/vdi/vdi_testing.h"
#include "io/engine/engine.h"
#include "tests/interop/qemu.h"

namespace platter::vdi {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing_support::MustRun;
using testing_support::Shell;
using testing_support::TempFolder;

class VdiFiles : public testing::Test {
 protected:
  std::string File(const std::string& name) const { return folder_.File(name); }

  void Save(const std::string& name, ConstBytes bytes) const {
    std::ofstream(File(name), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }

  Result<std::unique_ptr<Disk>> OpenDisk(const std::string& name, bool writable = false,
                                         DiskOptions options = {}, GatePolicy policy = {}) const {
    options.format = "vdi";
    options.file.writable = writable;
    return Disk::Open(File(name), options, Gate(std::move(policy)), nullptr);
  }

  std::vector<std::byte> Content(const std::string& name) const {
    auto disk = OpenDisk(name);
    EXPECT_TRUE(disk.has_value()) << disk.error().text();
    auto bytes = disk.has_value() ? ReadAll(**disk) : std::vector<std::byte>();
    EXPECT_TRUE(bytes.has_value()) << bytes.error().text();
    return bytes.has_value() ? *bytes : std::vector<std::byte>();
  }

  std::string ErrorOf(const std::string& name, GatePolicy policy = {}) const {
    auto disk = OpenDisk(name, false, {}, std::move(policy));
    return disk.has_value() ? std::string() : disk.error().text();
  }

  Result<> Create(const std::string& name, uint64_t size, OptionMap options,
                  const std::string& parent = "") const {
    NewImageOptions create{.format = "vdi"};
    create.create.size = size;
    create.create.options = std::move(options);
    create.size_from_parent = size == 0;
    if (!parent.empty()) create.create.parent = Reference{Reference::kParent, parent, "vdi"};
    auto image = TRY(NewImage::Create(File(name), create, Gate({}), nullptr));
    return image->Commit();
  }

  void WriteTo(const std::string& name, uint64_t at, ConstBytes bytes) const {
    auto disk = OpenDisk(name, true);
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    auto written = Write(**disk, at, bytes);
    ASSERT_TRUE(written.has_value()) << written.error().text();
    auto flushed = (*disk)->Flush();
    ASSERT_TRUE(flushed.has_value()) << flushed.error().text();
  }

  TempFolder folder_;
};

TEST_F(VdiFiles, QemuReadsWhatWeWrite) {
  for (const OptionMap& options : {OptionMap{}, OptionMap{{"subformat", "fixed"}},
                                   OptionMap{{"static", "on"}, {"preallocation", "falloc"}}}) {
    const uint64_t size = 7 * kMiB + 512;
    fs::remove(File("a.vdi"));
    ASSERT_TRUE(Create("a.vdi", size, options).has_value());
    MustRun("qemu-img check -f vdi " + File("a.vdi"));
    std::vector<std::byte> content(size);
    for (uint64_t at : {uint64_t{5} * kMiB - 100, uint64_t{100}, size - 77}) {
      std::vector<std::byte> piece = Pattern(std::min<uint64_t>(3000, size - at), at);
      std::ranges::copy(piece, content.begin() + static_cast<ptrdiff_t>(at));
      WriteTo("a.vdi", at, piece);
      Save("a.raw", content);
      MustRun("qemu-img check -f vdi " + File("a.vdi"));
      MustRun("qemu-img compare -f vdi -F raw " + File("a.vdi") + " " + File("a.raw"));
    }
    // Both write, in turns.
    MustRun("qemu-io -f vdi -c 'write -P 9 1M 700k' -c 'write -P 7 6M 3k' " + File("a.vdi"));
    MustRun("qemu-io -f raw -c 'write -P 9 1M 700k' -c 'write -P 7 6M 3k' " + File("a.raw"));
    WriteTo("a.vdi", 2 * kMiB, Pattern(512, 4));
    MustRun("qemu-img convert -f vdi -O raw " + File("a.vdi") + " " + File("b.raw"));
    std::ifstream file(File("b.raw"), std::ios::binary);
    std::string raw((std::istreambuf_iterator<char>(file)), {});
    EXPECT_TRUE(std::ranges::equal(Content("a.vdi"), AsBytes(std::string_view(raw))));
    EXPECT_EQ(std::to_integer<int>(Content("a.vdi")[6 * kMiB]), 7);
    MustRun("qemu-img check -f vdi " + File("a.vdi"));
  }
}

TEST_F(VdiFiles, QemuReadsWhatWeDiscardedAndResized) {
  ASSERT_TRUE(Create("a.vdi", 20 * kMiB, {}).has_value());
  std::vector<std::byte> content = Pattern(20 * kMiB, 3);
  WriteTo("a.vdi", 0, content);
  {
    auto disk = OpenDisk("a.vdi", true);
    ASSERT_TRUE(disk.has_value());
    ASSERT_TRUE(Zero(**disk, {3 * kMiB + 5, 6 * kMiB}, true).has_value());
    std::fill_n(content.begin() + 3 * kMiB + 5, 6 * kMiB, std::byte{0});
    ASSERT_TRUE((*disk)->resizer()->Resize(9 * kGiB, Preallocation::kOff).has_value());
    ASSERT_TRUE((*disk)->resizer()->Resize(25 * kMiB, Preallocation::kOff).has_value());
    content.resize(25 * kMiB);
    ASSERT_TRUE((*disk)->Flush().has_value());
  }
  Save("a.raw", content);
  MustRun("qemu-img check -f vdi " + File("a.vdi"));
  MustRun("qemu-img compare -f vdi -F raw " + File("a.vdi") + " " + File("a.raw"));
  EXPECT_EQ(Content("a.vdi"), content);
  EXPECT_LT(fs::file_size(File("a.vdi")), 17 * kMiB) << "the holes are filled";
}

TEST_F(VdiFiles, WeReadWhatQemuWrites) {
  for (const char* options : {"static=off", "static=on"}) {
    MustRun(fmt::format("qemu-img create -q -f vdi -o {} {} 9000k", options, File("q.vdi")));
    MustRun("qemu-io -f vdi -c 'write -P 3 100 5000' -c 'write -P 4 8000k 1000k' " + File("q.vdi"));
    MustRun("qemu-img convert -O raw " + File("q.vdi") + " " + File("q.raw"));
    std::ifstream file(File("q.raw"), std::ios::binary);
    std::string raw((std::istreambuf_iterator<char>(file)), {});
    EXPECT_TRUE(std::ranges::equal(Content("q.vdi"), AsBytes(std::string_view(raw))));
  }
}

// qemu-img check says that all is well (exit code 0) with an image whose data is not there, and
// repairs nothing. Ours names it and mends it, after which qemu-img and we agree.
TEST_F(VdiFiles, CheckFindsWhatQemuDoesNot) {
  HandMade image{.size = 4 * kMiB,
                 .block_size = kMiB,
                 .map = {0, 1, 0xffffffff, 0xffffffff},
                 .allocated = 2,
                 .data = Pattern(kMiB, 1)};
  Save("a.vdi", image.Bytes());
  EXPECT_EQ(Shell("qemu-img check -f vdi " + File("a.vdi")).exit_code, 0);
  auto store = Gate::OpenFile(File("a.vdi"), {.writable = true});
  ASSERT_TRUE(store.has_value());
  const Format* format = *FindFormat("vdi");
  auto report = format->check(**store, {}, {});
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->corruptions, 1u);
  report = format->check(**store, {}, {.repair = CheckOptions::kAll});
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->corruptions, 0u);
  EXPECT_EQ(report->corruptions_fixed, 1u);
  store->reset();
  std::vector<std::byte> content = Pattern(kMiB, 1);
  content.resize(4 * kMiB);
  EXPECT_EQ(Content("a.vdi"), content);
  Save("a.raw", content);
  MustRun("qemu-img compare -f vdi -F raw " + File("a.vdi") + " " + File("a.raw"));
}

// Ours of ours: made with a parent, found again by UUID, whatever the files are called.
TEST_F(VdiFiles, ChainsAreFoundByUuid) {
  ASSERT_TRUE(Create("base.vdi", 5 * kMiB + 100, {{"block_size", "65536"}}).has_value());
  std::vector<std::byte> content = Pattern(5 * kMiB + 100, 8);
  WriteTo("base.vdi", 0, content);
  ASSERT_TRUE(Create("middle.vdi", 0, {}, File("base.vdi")).has_value());
  auto piece = Pattern(100000, 9);
  WriteTo("middle.vdi", 777777, piece);
  std::ranges::copy(piece, content.begin() + 777777);
  ASSERT_TRUE(Create("top.vdi", 0, {}, File("middle.vdi")).has_value());
  fs::rename(File("base.vdi"), File("anything"));
  fs::rename(File("middle.vdi"), File("z"));
  EXPECT_EQ(Content("top.vdi"), content);

  // Elsewhere: only where the user says.
  fs::create_directory(File("away"));
  fs::rename(File("z"), File("away/z"));
  EXPECT_THAT(ErrorOf("top.vdi"), HasSubstr("--search"));
  EXPECT_EQ(ErrorOf("top.vdi", {.search = {File("away"), File("")}}), "");
  DiskOptions with_parent{.parent = File("away/z")};
  auto disk = OpenDisk("top.vdi", false, with_parent, {.search = {File("")}});
  ASSERT_TRUE(disk.has_value()) << disk.error().text();
  EXPECT_EQ(*ReadAll(**disk), content);
  with_parent.parent = File("anything");
  disk = OpenDisk("top.vdi", false, with_parent);
  ASSERT_FALSE(disk.has_value());
  EXPECT_THAT(disk.error().text(), HasSubstr("is not the image that this one was made on"));

  // Changed meanwhile: refused.
  fs::rename(File("away/z"), File("z"));
  WriteTo("z", 5, Pattern(1, 3));
  EXPECT_THAT(ErrorOf("top.vdi"), HasSubstr("was changed after this image was made on it"));
}

// Written by hand: version 0, differencing and undo.
TEST_F(VdiFiles, OldChainsAreFoundByUuid) {
  HandMade base{.major = 0,
                .minor = 1,
                .size = 4 * 4096,
                .map = {0, 1, 2, 3},
                .allocated = 4,
                .id = 0x11,
                .modification = 0x12,
                .data = Pattern(4 * 4096, 1)};
  HandMade child{.major = 0,
                 .minor = 1,
                 .type = 3,
                 .size = 4 * 4096,
                 .map = {0xffffffff, 0, 0xfffffffe, 0xffffffff},
                 .allocated = 1,
                 .id = 0x21,
                 .modification = 0x22,
                 .parent = 0x11,
                 .data = Pattern(4096, 2)};
  HandMade top = child;
  top.major = 1;
  top.type = 4;
  top.map = {0xffffffff, 0xffffffff, 0xffffffff, 0};
  top.id = 0x31;
  top.parent = 0x21;
  top.parent_modification = 0x22;
  top.data = Pattern(4096, 3);
  std::vector<std::byte> content = Pattern(4 * 4096, 1);
  std::ranges::copy(Pattern(4096, 2), content.begin() + 4096);
  std::fill_n(content.begin() + 2 * 4096, 4096, std::byte{0});
  std::ranges::copy(Pattern(4096, 3), content.begin() + 3 * 4096);
  Save("1.vdi", base.Bytes());
  Save("2.vdi", child.Bytes());
  Save("3.vdi", top.Bytes());
  EXPECT_EQ(Content("3.vdi"), content);
  top.parent_modification = 0x23;
  Save("3.vdi", top.Bytes());
  EXPECT_THAT(ErrorOf("3.vdi"), HasSubstr("23232323"));
  child.parent = 0x21;  // itself
  Save("2.vdi", child.Bytes());
  top.parent_modification = 0x22;
  Save("3.vdi", top.Bytes());
  EXPECT_THAT(ErrorOf("3.vdi"), HasSubstr("comes back"));
}

TEST_F(VdiFiles, ParentsInOtherFormatsAreRefused) {
  MustRun("qemu-img create -q -f qcow2 " + File("base.qcow2") + " 1M");
  NewImageOptions create{.format = "vdi", .size_from_parent = true};
  create.create.parent = Reference{Reference::kParent, File("base.qcow2"), "qcow2"};
  auto image = NewImage::Create(File("a.vdi"), create, Gate({}), nullptr);
  ASSERT_FALSE(image.has_value());
  EXPECT_THAT(image.error().text(), HasSubstr("this one is qcow2"));
  EXPECT_FALSE(fs::exists(File("a.vdi")));
}

}  // namespace
}  // namespace platter::vdi
