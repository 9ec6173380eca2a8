// Images that qemu-img 7.2 reads, converts or passes with exit code 0 although the result is wrong.
// Here each of them is an error with its reason, or reads as it should.
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>

#include "base/endian.h"
#include "tools/platter_testing.h"

namespace platter {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing_support::MustRun;
using testing_support::Shell;

class WrongData : public PlatterTest {
 protected:
  // A command in the test's folder.
  std::string In(const std::string& command) {
    return MustRun("cd '" + File("") + "' && " + command);
  }
  // What qemu-img does not mind.
  void QemuIsContent(const std::string& arguments) { In("qemu-img " + arguments); }
  void Put(const std::string& name, const std::string& text) {
    std::ofstream(File(name), std::ios::binary) << text;
  }
  uint32_t Load32(const std::string& name, uint64_t at) {
    std::ifstream file(File(name), std::ios::binary);
    file.seekg(static_cast<std::streamoff>(at));
    le32 value;
    file.read(reinterpret_cast<char*>(&value), sizeof(value));
    return value;
  }
  void Store32(const std::string& name, uint64_t at, uint32_t number) {
    std::fstream file(File(name), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at));
    const le32 value(number);
    file.write(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  Ran ToRaw(const std::string& format, const std::string& image) {
    return Platter({"convert", "-q", "-f", format, "-O", "raw", File(image), File("out.raw")});
  }
  bool Made() const { return std::filesystem::exists(folder_.File("out.raw")); }
};

TEST_F(WrongData, ADifferencingVhdWithoutItsParent) {
  In("qemu-img create -q -f vpc -o force_size=on base.vhd 8M && "
     "qemu-io -f vpc -c 'write -q -P 7 0 8M' base.vhd");
  ASSERT_EQ(
      Platter({"create", "-q", "-f", "vpc", "-b", File("base.vhd"), "-F", "vpc", File("top.vhd")})
          .code,
      0);
  In("mkdir away && mv base.vhd away");
  QemuIsContent("convert -f vpc -O raw top.vhd qemu.raw");
  Ran ran = ToRaw("vpc", "top.vhd");
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, HasSubstr("base.vhd"));
  EXPECT_FALSE(Made());
}

// Access and kind of extents are words in a text that QEMU passes over.
TEST_F(WrongData, ExtentsOfAVmdkThatAreNotJustData) {
  In("head -c 1M /dev/urandom > data && cp data before");
  auto describe = [&](const std::string& extents) {
    Put("a.vmdk",
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        "createType=\"custom\"\n" +
            extents);
  };
  describe("RW 1024 FLAT \"data\" 0\nRW 2048 ZERO\nRW 1024 FLAT \"data\" 1024\n");
  ASSERT_EQ(ToRaw("vmdk", "a.vmdk").code, 0);
  In("head -c 512k data > want && head -c 1M /dev/zero >> want && tail -c 512k data >> want && "
     "cmp want out.raw && rm out.raw");

  describe("RDONLY 2048 FLAT \"data\" 0\n");
  ASSERT_EQ(ToRaw("vmdk", "a.vmdk").code, 0);
  In("cmp data out.raw && truncate -s 1M zeros");
  Ran ran =
      Platter({"convert", "-q", "-n", "-f", "raw", "-O", "vmdk", File("zeros"), File("a.vmdk")});
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, HasSubstr("RDONLY"));
  In("cmp data before && rm out.raw");

  describe("NOACCESS 2048 FLAT \"data\" 0\n");
  ran = ToRaw("vmdk", "a.vmdk");
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, HasSubstr("NOACCESS"));
  EXPECT_FALSE(Made());
}

TEST_F(WrongData, GrainsThatTwoEntriesName) {
  In("head -c 1M /dev/urandom > data && qemu-img convert -f raw -O vmdk data a.vmdk");
  for (uint64_t field : {48, 56}) {  // both grain directories, in the header
    const uint64_t table =
        uint64_t{Load32("a.vmdk", uint64_t{Load32("a.vmdk", field)} * 512)} * 512;
    Store32("a.vmdk", table + 4 * 3, Load32("a.vmdk", table));
  }
  QemuIsContent("check -q -f vmdk a.vmdk");
  Ran ran = Platter({"check", "-f", "vmdk", File("a.vmdk")});
  EXPECT_EQ(ran.code, 2);
  EXPECT_THAT(ran.out + ran.err, AllOf(HasSubstr("entry 3"), HasSubstr("entry 0")));
}

TEST_F(WrongData, ACompressedClusterThatIsDamaged) {
  In("yes 'some text' | head -c 1M > data && qemu-img convert -c -f raw -O qcow2 data a.qcow2");
  // Of the map of a compressed image QEMU tells no places, so the check's own words say where.
  In("printf '\\377\\377\\377\\377\\377\\377\\377\\377' | "
     "dd of=a.qcow2 bs=1 seek=$((5 * 65536 + 40)) conv=notrunc status=none");
  QemuIsContent("check -q -f qcow2 a.qcow2");
  EXPECT_EQ(Platter({"check", "-q", "-f", "qcow2", File("a.qcow2")}).code, 0);
  Ran ran = Platter({"check", "--deep", "-f", "qcow2", File("a.qcow2")});
  EXPECT_EQ(ran.code, 2) << ran.out << ran.err;
  EXPECT_EQ(ToRaw("qcow2", "a.qcow2").code, 1);
  EXPECT_FALSE(Made());
}

// QEMU counts what is wrong with a VDI and says that it repaired it, but repairs nothing.
TEST_F(WrongData, ARepairThatRepairs) {
  In("head -c 4M /dev/urandom > data && qemu-img convert -f raw -O vdi data a.vdi");
  const uint64_t map = Load32("a.vdi", 0x154);
  Store32("a.vdi", map + 4 * 2, 0);  // block 2 is where block 0 is
  Ran ran = Platter({"check", "-f", "vdi", File("a.vdi")});
  EXPECT_EQ(ran.code, 2);
  ran = Platter({"check", "-r", "all", "-f", "vdi", File("a.vdi")});
  EXPECT_EQ(ran.code, 0) << ran.out << ran.err;
  EXPECT_EQ(Platter({"check", "-f", "vdi", File("a.vdi")}).code, 0);
  In("qemu-img check -q -f vdi a.vdi");
  // Each of the two has its own block now, and both hold what they read as before.
  ASSERT_EQ(ToRaw("vdi", "a.vdi").code, 0);
  In("cmp -n 1M data out.raw && cmp -n 1M -i 0:2M data out.raw && cmp -n 1M -i 3M data out.raw");
}

TEST_F(WrongData, AnEmptyVhdxIsAllHoles) {
  In("qemu-img create -q -f vhdx -o block_state_zero=off a.vhdx 1G");
  Ran ran = Platter({"map", "--output", "json", "-f", "vhdx", File("a.vhdx")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json map = json::parse(ran.out);
  ASSERT_EQ(map.size(), 1u) << ran.out;
  EXPECT_EQ(map[0]["length"], 1 << 30);
  EXPECT_EQ(map[0]["zero"], true);
  EXPECT_EQ(map[0]["data"], false);
  EXPECT_EQ(map[0]["present"], false);
}

}  // namespace
}  // namespace platter
