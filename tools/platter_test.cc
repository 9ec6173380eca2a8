// The command line in process, with qemu-img as the judge of words, fields and exit codes.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>

#include "formats/format.h"
#include "tools/platter_testing.h"

namespace platter {
namespace {

using namespace nlohmann::literals;
using nlohmann::json;
using testing_support::MustRun;
using testing_support::TempFolder;

TEST_F(PlatterTest, ConvertGoesBothWaysAndQemuAgrees) {
  std::string raw = RawSource();
  for (std::string options :
       {"", "-c", "-c -o compression_type=zstd", "-o cluster_size=4k", "-o extended_l2=on"}) {
    std::vector<std::string> args = {"convert", "-O", "qcow2", "--force", "--verify"};
    std::istringstream split(options);
    for (std::string word; split >> word;) args.push_back(word);
    args.insert(args.end(), {raw, File("out.qcow2")});
    Ran ran = Platter(args);
    ASSERT_EQ(ran.code, 0) << ran.err;
    MustRun("qemu-img check -q " + File("out.qcow2") + " && qemu-img compare -f raw -F qcow2 " +
            raw + " " + File("out.qcow2"));
    ran = Platter({"convert", "-f", "qcow2", "--force", File("out.qcow2"), File("back.raw")});
    ASSERT_EQ(ran.code, 0) << ran.err;
    MustRun("cmp " + raw + " " + File("back.raw"));
    EXPECT_EQ(Platter({"compare", "-f", "raw", raw, File("out.qcow2")}).out,
              "Images are identical.\n");
  }
}

TEST_F(PlatterTest, ConvertDoesNotOverwriteUnlessForced) {
  std::string raw = RawSource();
  MustRun("echo precious > " + File("out.qcow2"));
  Ran ran = Platter({"convert", "-f", "raw", "-O", "qcow2", raw, File("out.qcow2")});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("exists"), std::string::npos) << ran.err;
  EXPECT_EQ(MustRun("cat " + File("out.qcow2")), "precious\n");
}

TEST_F(PlatterTest, FailedConvertLeavesNothing) {
  std::string raw = RawSource();
  MustRun("qemu-img convert -c -O qcow2 " + raw + " " + File("bad.qcow2"));
  // Damage compressed data in the middle of the file.
  MustRun("dd if=/dev/urandom of=" + File("bad.qcow2") + " bs=1 seek=$(($(stat -c %s " +
          File("bad.qcow2") + ") - 300)) count=300 conv=notrunc status=none");
  Ran ran = Platter({"convert", "-O", "raw", File("bad.qcow2"), File("out.raw")});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("bad.qcow2"), std::string::npos) << ran.err;
  EXPECT_EQ(MustRun("cd " + File("") + " && ls -A | sort | tr '\\n' ' '"), "bad.qcow2 source.raw ");
}

// Lists are lists: of extents, of key slots.
TEST_F(PlatterTest, InfoHasQemuImgsLists) {
  MustRun("qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse " + File("a.vmdk") + " 3G");
  MustRun(
      "qemu-img create -q -f qcow2 --object secret,id=s,data=geheim -o "
      "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 " +
      File("a.qcow2") + " 1M");
  auto lists = [&](const std::string& file, const json::json_pointer& place) {
    std::vector<json> both;
    both.push_back(json::parse(MustRun("qemu-img info --output json " + file))[place]);
    both.push_back(json::parse(Platter({"info", "--output", "json", file}).out)[place]);
    return both;
  };
  auto slots = lists(File("a.qcow2"), "/format-specific/data/encrypt/slots"_json_pointer);
  EXPECT_EQ(slots[0], slots[1]);
  auto extents = lists(File("a.vmdk"), "/format-specific/data/extents"_json_pointer);
  ASSERT_TRUE(extents[1].is_array());
  ASSERT_EQ(extents[0].size(), extents[1].size());
  for (size_t i = 0; i < extents[0].size(); ++i) {
    for (const char* key : {"virtual-size", "cluster-size", "format"}) {
      EXPECT_EQ(extents[0][i][key], extents[1][i][key]) << i << " " << key;
    }
    EXPECT_TRUE(extents[1][i].contains("filename"));
  }
}

TEST_F(PlatterTest, InfoHasQemuImgsFields) {
  MustRun(
      "qemu-img create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on,compression_type=zstd " +
      File("a.qcow2") + " 10M");
  MustRun("qemu-img bitmap --add -g 64k " + File("a.qcow2") + " b0");
  MustRun("qemu-img snapshot -c s1 " + File("a.qcow2"));
  MustRun("cd " + File("") + " && qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2");
  for (std::string name : {"a.qcow2", "b.qcow2"}) {
    json theirs = json::parse(MustRun("qemu-img info --output json " + File(name)));
    Ran ran = Platter({"info", "--output", "json", File(name)});
    ASSERT_EQ(ran.code, 0) << ran.err;
    json ours = json::parse(ran.out);
    theirs.erase("children");
    for (const auto& [key, value] : theirs.items())
      EXPECT_EQ(ours[key], value) << name << " " << key;
  }
}

TEST_F(PlatterTest, SnapshotsAreListedMadeAndDropped) {
  std::string image = File("a.qcow2");
  MustRun("qemu-img create -q -f qcow2 " + image + " 1M && qemu-io -c 'write -P 1 0 64k' " + image);
  EXPECT_EQ(Platter({"snapshot", "-l", image}).out, "");
  ASSERT_EQ(Platter({"snapshot", "-c", "one", image}).code, 0);
  EXPECT_EQ(Platter({"snapshot", image}).out, MustRun("qemu-img snapshot -l " + image));
  json list = json::parse(Platter({"snapshot", "-l", "--output", "json", image}).out);
  EXPECT_EQ(list[0]["name"], "one");

  MustRun("qemu-io -c 'write -P 2 0 64k' " + image);
  ASSERT_EQ(Platter({"snapshot", "-a", "one", image}).code, 0);
  MustRun("qemu-io -c 'read -P 1 0 64k' " + image + " | grep -vq failed");
  ASSERT_EQ(Platter({"snapshot", "-d", "1", image}).code, 0);
  EXPECT_EQ(Platter({"snapshot", "-l", image}).out, "");
  MustRun("qemu-img check -q " + image);

  Ran missing = Platter({"snapshot", "-a", "none", image});
  EXPECT_EQ(missing.code, 1);
  EXPECT_NE(missing.err.find("no such snapshot"), std::string::npos) << missing.err;
  EXPECT_EQ(Platter({"snapshot", "-a", "x", "-d", "y", image}).code, 1);
  MustRun("truncate -s 1M " + File("raw"));
  EXPECT_NE(Platter({"snapshot", "-f", "raw", "-c", "x", File("raw")}).err.find("no snapshots"),
            std::string::npos);
}

TEST_F(PlatterTest, MapAgreesWithQemuImg) {
  std::string raw = RawSource();
  MustRun("qemu-img convert -O qcow2 " + raw + " " + File("base.qcow2"));
  MustRun("cd " + File("") +
          " && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 16M && qemu-io -c "
          "'write -P 3 1100k 64k' -c 'write -z 5M 64k' -c 'write -P 4 9M 1M' top.qcow2");
  json theirs = json::parse(MustRun("qemu-img map --output json " + File("top.qcow2")));
  Ran ran = Platter({"map", "--output", "json", File("top.qcow2")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  json ours = json::parse(ran.out);
  // Ours merges no less; compare what each says of every run's first byte.
  for (const json& entry : theirs) {
    auto covers = [&](const json& o) {
      return o["start"] <= entry["start"] &&
             o["start"].get<uint64_t>() + o["length"].get<uint64_t>() >
                 entry["start"].get<uint64_t>();
    };
    auto it = std::find_if(ours.begin(), ours.end(), covers);
    ASSERT_NE(it, ours.end()) << entry;
    for (const char* key : {"data", "zero", "present"})
      EXPECT_EQ((*it)[key], entry[key]) << key << " " << entry << " ours " << *it;
    if (entry["data"]) {
      EXPECT_EQ((*it)["depth"], entry["depth"]) << entry;
    }
  }
}

TEST_F(PlatterTest, MapDraws) {
  std::string raw = RawSource();
  for (std::string name : {"map.png", "map.html"}) {
    Ran ran = Platter({"map", "-f", "raw", "--picture", File(name), raw});
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_GT(std::filesystem::file_size(File(name)), 500u);
  }
  EXPECT_EQ(MustRun("head -c 4 " + File("map.png") + " | tail -c 3"), "PNG");
  EXPECT_EQ(Platter({"map", "-f", "raw", "--picture", File("map.jpg"), raw}).code, 1);
}

TEST_F(PlatterTest, CompareHasQemuImgsExitCodes) {
  std::string raw = RawSource();
  MustRun("cp " + raw + " " + File("other.raw") + " && qemu-io -f raw -c 'write -P 1 7M 1' " +
          File("other.raw"));
  Ran ran = Platter({"compare", "-f", "raw", "-F", "raw", raw, File("other.raw")});
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(ran.out, "Content mismatch at offset 7340032!\n");
  MustRun("cp " + raw + " " + File("longer.raw") + " && truncate -s 9M " + File("longer.raw"));
  ran = Platter({"compare", "-f", "raw", "-F", "raw", raw, File("longer.raw")});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(Platter({"compare", "-s", "-f", "raw", "-F", "raw", raw, File("longer.raw")}).code, 1);
  EXPECT_EQ(Platter({"compare", "-f", "raw", "-F", "raw", raw, File("absent")}).code, 2);
  EXPECT_EQ(Platter({"compare", raw}).code, 2);
}

TEST_F(PlatterTest, CheckHasQemuImgsExitCodes) {
  std::string raw = RawSource();
  MustRun("qemu-img convert -O qcow2 " + raw + " " + File("a.qcow2"));
  EXPECT_EQ(Platter({"check", File("a.qcow2")}).code, 0);
  EXPECT_EQ(Platter({"check", "-f", "raw", raw}).code, 63);
  EXPECT_EQ(Platter({"check", "--deep", "-f", "raw", raw}).code, 0);
  EXPECT_EQ(Platter({"check", File("absent")}).code, 1);
  json theirs = json::parse(MustRun("qemu-img check --output json " + File("a.qcow2")));
  json ours = json::parse(Platter({"check", "--output", "json", File("a.qcow2")}).out);
  for (const auto& [key, value] : theirs.items()) EXPECT_EQ(ours[key], value) << key;
}

TEST_F(PlatterTest, HashIsOneForAllFormats) {
  std::string raw = RawSource();
  MustRun("qemu-img convert -c -O qcow2 -o cluster_size=2M " + raw + " " + File("a.qcow2"));
  std::string first = Platter({"hash", "-f", "raw", raw}).out,
              second = Platter({"hash", File("a.qcow2")}).out;
  EXPECT_EQ(first.substr(0, first.find(' ')), second.substr(0, second.find(' ')));
  std::string plain = Platter({"hash", "--plain", File("a.qcow2")}).out;
  EXPECT_EQ(plain.substr(7, 64), MustRun("sha256sum < " + raw).substr(0, 64));
}

TEST_F(PlatterTest, ResizeGrowsAndShrinksOnlyWhenTold) {
  MustRun("qemu-img create -q -f qcow2 " + File("a.qcow2") +
          " 10M && qemu-io -c 'write -P 5 9M 64k' " + File("a.qcow2"));
  EXPECT_EQ(Platter({"resize", File("a.qcow2"), "+1G"}).code, 0);
  EXPECT_NE(MustRun("qemu-img info " + File("a.qcow2")).find("1084227584 bytes"),
            std::string::npos);
  EXPECT_EQ(Platter({"resize", File("a.qcow2"), "5M"}).code, 1);
  EXPECT_EQ(Platter({"resize", "--shrink", File("a.qcow2"), "5M"}).code, 0);
  MustRun("qemu-img check -q " + File("a.qcow2"));
  EXPECT_NE(MustRun("qemu-img info " + File("a.qcow2")).find("5242880 bytes"), std::string::npos);
}

TEST_F(PlatterTest, MeasureAgreesWithQemuImg) {
  std::string raw = RawSource();
  json theirs = json::parse(MustRun("qemu-img measure --output json -O qcow2 -f raw " + raw));
  json ours =
      json::parse(Platter({"measure", "--output", "json", "-O", "qcow2", "-f", "raw", raw}).out);
  EXPECT_EQ(ours["fully-allocated"], theirs["fully-allocated"]);
  EXPECT_EQ(ours["required"], theirs["required"]);
}

TEST_F(PlatterTest, CreateMakesOverlays) {
  std::string raw = RawSource();
  EXPECT_EQ(
      Platter({"create", "-f", "qcow2", "-b", "source.raw", "-F", "raw", File("top.qcow2")}).code,
      0);
  MustRun("qemu-img check -q " + File("top.qcow2") + " && qemu-img compare -f raw -F qcow2 " + raw +
          " " + File("top.qcow2"));
  EXPECT_EQ(Platter({"create", "-f", "qcow2", File("none.qcow2")}).code, 1);
  EXPECT_EQ(
      Platter({"create", "-f", "qcow2", "-b", "missing.raw", "-F", "raw", File("x.qcow2")}).code,
      1);
  EXPECT_FALSE(std::filesystem::exists(File("x.qcow2")));
}

TEST_F(PlatterTest, ParentsOutsideAreRefusedByName) {
  std::string raw = RawSource();
  TempFolder elsewhere;
  MustRun("cp " + raw + " " + elsewhere.File("secret.raw"));
  MustRun("qemu-img create -q -f qcow2 -b " + elsewhere.File("secret.raw") + " -F raw " +
          File("top.qcow2"));
  Ran ran = Platter({"convert", "-O", "raw", File("top.qcow2"), File("out.raw")});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("--allow-external"), std::string::npos) << ran.err;
  EXPECT_NE(ran.err.find("secret.raw"), std::string::npos) << ran.err;
  EXPECT_EQ(Platter({"info", File("top.qcow2")}).code, 0);
  EXPECT_EQ(Platter({"convert", "--trust", elsewhere.File(""), "-O", "raw", File("top.qcow2"),
                     File("out.raw")})
                .code,
            0);
  EXPECT_EQ(Platter({"compare", "--allow-external", "-F", "raw", File("top.qcow2"), raw}).code, 0);
}

TEST_F(PlatterTest, HelpAndManualsCoverEveryCommand) {
  EXPECT_EQ(Platter({"--help"}).code, 0);
  for (const auto& command : AllCommands()) {
    Ran ran = Platter({std::string(command->name()), "--help"});
    EXPECT_EQ(ran.code, 0);
    EXPECT_NE(ran.out.find("platter " + std::string(command->name())), std::string::npos)
        << ran.out;
  }
  std::filesystem::create_directory(File("man"));
  ASSERT_EQ(Platter({"generate", "man", File("man")}).code, 0);
  for (const auto& command : AllCommands()) {
    Ran help = Platter({std::string(command->name()), "--help"});
    std::ifstream page(File("man/platter-" + std::string(command->name()) + ".1"));
    std::string text{std::istreambuf_iterator<char>(page), {}};
    EXPECT_NE(text.find(".SH EXAMPLES"), std::string::npos);
  }
  EXPECT_EQ(Platter({"generate", "bash", File("man")}).code, 0);
  // What bash offers after -f: every format there is.
  std::string offered = MustRun("bash -c 'source " + File("man/platter") +
                                "; COMP_WORDS=(platter info -f \"\"); COMP_CWORD=3; _platter; "
                                "echo \"${COMPREPLY[*]}\"'");
  std::string formats;
  for (const Format* format : AllFormats()) formats += std::string(format->name) + " ";
  EXPECT_EQ(offered, formats.substr(0, formats.size() - 1) + "\n");
  EXPECT_EQ(Platter({"generate", "zsh", File("man")}).code, 0);
  EXPECT_EQ(Platter({"frobnicate"}).code, 1);
  EXPECT_EQ(Platter({"info", "--no-such-flag", "x"}).code, 1);
}

// VDI images know their parents by UUID.
TEST_F(PlatterTest, ParentsAreFoundWhereTheUserSays) {
  const std::string raw = RawSource(), away = File("away/base.vdi"), top = File("top.vdi");
  MustRun("mkdir " + File("away"));
  ASSERT_EQ(Platter({"convert", "-q", "-f", "raw", "-O", "vdi", raw, away}).code, 0);
  ASSERT_EQ(Platter({"create", "-f", "vdi", "-b", away, "-F", "vdi", top}).code, 0);
  Ran ran = Platter({"hash", top});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("--search DIR"), std::string::npos) << ran.err;
  const std::vector<std::string> search = {"--search", File("nothing"), "--search", File("away")};
  for (const auto& how :
       {search, {"--parent", away}, {"--parent", away, "--parent-format", "vdi"}}) {
    auto with = [&](std::vector<std::string> args) {
      args.insert(args.begin() + 1, how.begin(), how.end());
      return args;
    };
    EXPECT_EQ(Platter(with({"compare", top, "-F", "raw", raw})).out, "Images are identical.\n");
    EXPECT_EQ(Platter(with({"hash", top})).code, 0);
    EXPECT_EQ(Platter(with({"map", top})).code, 0);
    EXPECT_EQ(Platter(with({"check", "--deep", top})).code, 0);
    EXPECT_EQ(Platter(with({"info", "--backing-chain", top})).code, 0);
    ASSERT_EQ(Platter(with({"convert", "-q", "--force", top, File("back.raw")})).code, 0);
    MustRun("cmp " + raw + " " + File("back.raw"));
  }
  ASSERT_EQ(Platter({"create", "-f", "vdi", File("other.vdi"), "8M"}).code, 0);
  ran = Platter({"hash", "--parent", File("other.vdi"), top});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("is not the image"), std::string::npos) << ran.err;
  EXPECT_EQ(Platter({"hash", "--parent-format", "vdi", top}).code, 1);
  EXPECT_EQ(Platter({"hash", "--parent", away, "--no-backing", top}).code, 1);
}

}  // namespace
}  // namespace platter
