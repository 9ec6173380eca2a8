// Conversions that are easily wrong without anybody being told.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cow/create.h"
#include "io/engine/engine.h"
#include "tools/platter_testing.h"

namespace platter {
namespace {

namespace fs = std::filesystem;
using testing_support::MustRun;

class ConvertTest : public PlatterTest {
 protected:
  std::string Put(const std::string& name, const std::string& bytes) {
    std::ofstream(File(name), std::ios::binary) << bytes;
    return File(name);
  }
  std::vector<std::string> Files() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(File("")))
      names.push_back(entry.path().filename());
    std::ranges::sort(names);
    return names;
  }
  std::string Get(const std::string& name) {
    std::ifstream file(File(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
};

// Legacy AES numbers sectors by guest offset, of the disk that they are on.
TEST_F(ConvertTest, EncryptedSourcesInARow) {
  const std::string key = "file:" + Put("key", "secret");
  std::string first(192 * kKiB, 'a'), second(200 * kKiB, 'b');
  for (size_t i = 0; i < second.size(); i += 512) second[i] = static_cast<char>(i / 512);
  Put("a.raw", first);
  Put("b.raw", second);
  for (std::string encryption : {"aes", "luks"}) {
    for (std::string name : {"a", "b"}) {
      Ran ran = Platter({"convert", "--force", "-f", "raw", "-O", "qcow2", "-o",
                         "encrypt.format=" + encryption, "--target-secret", key,
                         File(name + ".raw"), File(name + ".qcow2")});
      ASSERT_EQ(ran.code, 0) << ran.err;
    }
    Ran ran = Platter({"convert", "--force", "-f", "qcow2", "--secret", key, File("a.qcow2"),
                       File("b.qcow2"), File("out.raw")});
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_TRUE(Get("out.raw") == first + second) << encryption;
  }
}

TEST_F(ConvertTest, AnEncryptedSourceBehindARaggedOneIsRefused) {
  const std::string key = "file:" + Put("key", "secret");
  Put("a.raw", std::string(1000, 'a'));
  Put("b.raw", std::string(70000, 'b'));
  Ran ran = Platter({"convert", "-f", "raw", "-O", "qcow2", "-o", "encrypt.format=aes",
                     "--target-secret", key, File("b.raw"), File("b.qcow2")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  ran = Platter({"convert", "--secret", key, File("a.raw"), File("b.qcow2"), File("out.raw")});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("cannot follow one of 1000 bytes"), std::string::npos) << ran.err;
  EXPECT_FALSE(fs::exists(File("out.raw")));
}

// One file as a parent in two formats is two parents.
TEST_F(ConvertTest, AParentInAnotherFormatIsAnother) {
  MustRun("cd " + File("") +
          " && qemu-img create -q -f qcow2 base.qcow2 1M && qemu-io -c 'write -P 5 0 1M' "
          "base.qcow2 && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 && "
          "qemu-io -c 'write -P 7 0 64k' top.qcow2");
  for (std::string format : {"qcow2", "raw"}) {
    Ran ran = Platter({"convert", "--force", "-O", "qcow2", "-B", File("base.qcow2"), "-F", format,
                       File("top.qcow2"), File("out.qcow2")});
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(Platter({"compare", File("top.qcow2"), File("out.qcow2")}).code, 0) << format;
  }
}

TEST_F(ConvertTest, SizesThatAreAsAskedAreNoWarning) {
  Put("a.raw", "x");
  Ran ran = Platter({"convert", "-f", "raw", "-O", "vdi", File("a.raw"), File("a.vdi")});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.err, "");
}

// An old image over new data files is neither the old disk nor the new one.
TEST_F(ConvertTest, AFailureHalfWayThroughAReplacementLeavesNoMixture) {
  NewImageOptions options;
  options.format = "qcow2";
  options.create = {.size = kMiB, .options = {{"data_file", "out.data"}}};
  options.replace = true;
  const Gate gate(GatePolicy{});
  for (std::string content : {"old", "new"}) {
    auto image = NewImage::Create(File("out.qcow2"), options, gate, nullptr);
    ASSERT_TRUE(image) << image.error().text();
    ASSERT_TRUE(Write((*image)->disk(), 0, AsBytes(std::string_view(content))));
    if (content == "new") {
      // The last rename is going to fail.
      fs::remove(File("out.qcow2"));
      fs::create_directories(File("out.qcow2/in-the-way"));
    }
    EXPECT_EQ((*image)->Commit().has_value(), content == "old");
  }
  EXPECT_EQ(Get("out.data").substr(0, 3), "old");
}

TEST_F(ConvertTest, ReplacingAnImageOfSeveralFiles) {
  std::string raw = RawSource();
  for (int i = 0; i < 2; ++i) {
    Ran ran = Platter({"convert", "--force", "-f", "raw", "-O", "vmdk", "-o",
                       "subformat=twoGbMaxExtentFlat", raw, File("out.vmdk")});
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(Files(), (std::vector<std::string>{"out-f001.vmdk", "out.vmdk", "source.raw"}));
    MustRun("qemu-img compare -f raw -F vmdk " + raw + " " + File("out.vmdk"));
  }
}

TEST_F(ConvertTest, DeepCheckReadsWhatOnlySnapshotsHold) {
  std::string raw = RawSource(), image = File("a.qcow2");
  ASSERT_EQ(Platter({"convert", "-c", "-f", "raw", "-O", "qcow2", raw, image}).code, 0);
  const std::string good = Get("a.qcow2");
  MustRun("qemu-img snapshot -c before " + image + " && qemu-io -c 'write -P 9 0 8M' " + image);
  EXPECT_EQ(Platter({"check", "--deep", image}).code, 0);
  // The compressed clusters lie at the end of what convert made.
  MustRun("head -c 4096 /dev/zero | tr '\\0' '\\377' | dd of=" + image + " bs=1 seek=" +
          std::to_string(good.size() - 600) + " count=500 conv=notrunc status=none");
  EXPECT_EQ(Platter({"check", image}).code, 0);
  Ran ran = Platter({"check", "--deep", image});
  EXPECT_EQ(ran.code, 2) << ran.out;
  EXPECT_NE(ran.out.find("corruption: snapshot 'before': guest "), std::string::npos) << ran.out;
}

TEST_F(ConvertTest, InfoSaysWhereTheParentWouldBe) {
  fs::create_directory(File("sub"));
  MustRun("cd " + File("") +
          " && qemu-img create -q -f qcow2 base.qcow2 1M && qemu-img create -q -f qcow2 -b "
          "../base.qcow2 -F qcow2 sub/top.qcow2");
  const std::string theirs = MustRun("qemu-img info " + File("sub/top.qcow2") + " | grep backing");
  Ran ran = Platter({"info", File("sub/top.qcow2")});
  EXPECT_NE(ran.out.find(theirs), std::string::npos) << ran.out << theirs;
}

TEST_F(ConvertTest, AnUnknownCommand) {
  Ran ran = Platter({"converrt", "a", "b"});
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(ran.err, "platter: there is no command 'converrt'\nTry 'platter --help'.\n");
}

}  // namespace
}  // namespace platter
