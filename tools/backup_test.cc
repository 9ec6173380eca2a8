// platter bitmap, map --bitmap, convert --bitmaps, backup and snapshot diff on the command line.
#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include <fstream>

#include "tests/model/random.h"
#include "tools/platter_testing.h"

namespace platter {
namespace {

using testing::HasSubstr;
using testing_support::MustRun;
using testing_support::Shell;

class BackupTest : public PlatterTest {
 protected:
  void Do(std::vector<std::string> args) {
    Ran ran = Platter(args);
    ASSERT_EQ(ran.code, 0) << ran.err;
  }
  std::string Fails(std::vector<std::string> args) {
    Ran ran = Platter(args);
    EXPECT_EQ(ran.code, 1);
    return ran.err;
  }
  void RandomWrites(const std::string& image, model::Random& random, uint64_t size) {
    std::string command = "qemu-io -f qcow2";
    for (int i = 0; i < 12; ++i) {
      const uint64_t at = random.Below(size / 512 - 400) * 512;
      const uint64_t length = (1 + random.Below(399)) * 512;
      const char* what = random.OneIn(4) ? "write -z" : random.OneIn(6) ? "discard" : "write -P";
      command += std::string(what) == "write -P"
                     ? fmt::format(" -c 'write -P {} {} {}'", 1 + random.Below(255), at, length)
                     : fmt::format(" -c '{} {} {}'", what, at, length);
    }
    MustRun(command + " " + image);
  }
};

TEST_F(BackupTest, BitmapActionsInOrder) {
  MustRun("qemu-img create -q -f qcow2 " + File("a") + " 8M");
  Do({"bitmap", "--add", "-g", "4k", File("a"), "one"});
  MustRun("qemu-io -c 'write 1M 4k' " + File("a"));
  Do({"bitmap", "--add", "--disable", "--merge", "one", File("a"), "two"});
  Do({"bitmap", "--clear", File("a"), "one"});
  EXPECT_EQ(Platter({"map", "--bitmap", "two", File("a")}).out,
            "Offset          Length          \n0x100000        0x10000         \n");
  auto json = nlohmann::json::parse(
      Platter({"map", "--bitmap", "two", "--output", "json", "-s", "1M", "-l", "128k", File("a")})
          .out);
  ASSERT_EQ(json.size(), 2u);
  EXPECT_EQ(json[0], nlohmann::json({{"start", 1048576}, {"length", 65536}, {"dirty", true}}));
  EXPECT_EQ(json[1]["dirty"], false);
  auto info = nlohmann::json::parse(MustRun("qemu-img info --output=json " + File("a")));
  auto bitmaps = info["format-specific"]["data"]["bitmaps"];
  EXPECT_EQ(bitmaps[0]["name"], "one");
  EXPECT_EQ(bitmaps[0]["flags"], nlohmann::json({"auto"}));
  EXPECT_EQ(bitmaps[0]["granularity"], 4096);
  EXPECT_EQ(bitmaps[1]["flags"], nlohmann::json::array());
  EXPECT_EQ(bitmaps[1]["granularity"], 65536);
  MustRun("qemu-img create -q -f qcow2 " + File("b") + " 8M");
  Do({"bitmap", "--add", "--merge", "two", "-b", File("a"), "-F", "qcow2", File("b"), "copy"});
  EXPECT_THAT(Platter({"map", "--bitmap", "copy", File("b")}).out, HasSubstr("0x100000"));
  Do({"bitmap", "--remove", File("a"), "one"});
  MustRun("qemu-img check " + File("a") + " && qemu-img check " + File("b"));
}

TEST_F(BackupTest, BitmapRefusals) {
  MustRun("qemu-img create -q -f qcow2 " + File("a") + " 8M && qemu-img create -q -f qcow2 " +
          File("b") + " 9M && qemu-img bitmap --add " + File("b") + " x && truncate -s 1M " +
          File("raw"));
  EXPECT_THAT(Fails({"bitmap", File("a"), "x"}), HasSubstr("--add"));
  EXPECT_THAT(Fails({"bitmap", "--clear", File("a"), "x"}), HasSubstr("no such bitmap"));
  EXPECT_THAT(Fails({"bitmap", "--clear", "-g", "4k", File("a"), "x"}), HasSubstr("-g goes with"));
  EXPECT_THAT(Fails({"bitmap", "--add", "-f", "raw", File("raw"), "x"}),
              HasSubstr("hold no bitmaps"));
  EXPECT_THAT(Fails({"bitmap", "--add", "--merge", "x", "-b", File("b"), File("a"), "y"}),
              HasSubstr("cannot be merged"));
  EXPECT_THAT(Fails({"map", "--bitmap", "x", "-f", "raw", File("raw")}), HasSubstr("no bitmaps"));
}

TEST_F(BackupTest, ConvertTakesBitmapsAlong) {
  MustRun("qemu-img create -q -f qcow2 " + File("a") + " 8M && qemu-img bitmap --add -g 4k " +
          File("a") + " on && qemu-img bitmap --add --disable " + File("a") +
          " off && qemu-io -c 'write 1M 100k' " + File("a"));
  Do({"convert", "-O", "qcow2", "--bitmaps", File("a"), File("ours")});
  MustRun("qemu-img convert -O qcow2 --bitmaps " + File("a") + " " + File("theirs"));
  for (const char* bitmap : {"on", "off"}) {
    EXPECT_EQ(Platter({"map", "--bitmap", bitmap, File("ours")}).out,
              Platter({"map", "--bitmap", bitmap, File("theirs")}).out);
  }
  auto bitmaps = [&](const char* name) {
    return nlohmann::json::parse(
        MustRun("qemu-img info --output=json " + File(name)))["format-specific"]["data"]["bitmaps"];
  };
  EXPECT_EQ(bitmaps("ours"), bitmaps("theirs"));
  MustRun("qemu-img check " + File("ours"));
  EXPECT_EQ(Platter({"measure", "-O", "qcow2", File("a")}).out,
            MustRun("qemu-img measure -O qcow2 " + File("a")));
  EXPECT_THAT(Fails({"convert", "-O", "raw", "--bitmaps", File("a"), File("raw")}),
              HasSubstr("raw images hold no bitmaps"));

  Shell("qemu-io -c 'write 0 4k' -c 'sigraise 9' " + File("a"));
  EXPECT_THAT(Fails({"convert", "-O", "qcow2", "--bitmaps", File("a"), File("broken")}),
              HasSubstr("'on' is in use"));
  EXPECT_FALSE(std::ifstream(File("broken")).good());
  Ran skipped = Platter(
      {"convert", "-O", "qcow2", "--bitmaps", "--skip-broken-bitmaps", File("a"), File("broken")});
  EXPECT_EQ(skipped.code, 0);
  EXPECT_THAT(skipped.err, HasSubstr("left out"));
  EXPECT_EQ(bitmaps("broken").size(), 0u) << "QEMU marks those that are disabled, too";
}

// A disk with a history, backed up step by step: each backup reads as the disk did.
TEST_F(BackupTest, AChainOfIncrementals) {
  constexpr uint64_t kSize = 24 * 1024 * 1024;
  for (uint64_t seed : {1, 2, 3}) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    model::Random random(seed);
    MustRun("rm -f " + File("*"));
    MustRun(fmt::format("qemu-img create -q -f qcow2 {} {}", File("disk"), kSize));
    RandomWrites(File("disk"), random, kSize);
    Do({"backup", "--full", "--new-bitmap", "daily", File("disk"), File("day0.qcow2")});
    MustRun("qemu-img compare " + File("disk") + " " + File("day0.qcow2"));
    for (int day = 1; day <= 4; ++day) {
      RandomWrites(File("disk"), random, kSize);
      if (day == 3) {  // our own writes, and a larger disk
        Do({"resize", "-q", File("disk"), "+1M"});
        Do({"snapshot", "-c", "s", File("disk")});
        RandomWrites(File("disk"), random, kSize);
      }
      const std::string today = File(fmt::format("day{}.qcow2", day));
      const std::string before = File(fmt::format("day{}.qcow2", day - 1));
      MustRun("cp " + File("disk") + " " + File(fmt::format("was{}", day)));
      Do({"backup", "--since", "daily", "--new-bitmap", "daily", "--verify", "-q", "-b", before,
          File("disk"), today});
      MustRun("qemu-img check " + today + " && qemu-img check " + File("disk"));
    }
    // Every one of them, later, with all that came after.
    for (int day = 1; day <= 4; ++day) {
      MustRun(fmt::format("qemu-img compare {} {}", File(fmt::format("was{}", day)),
                          File(fmt::format("day{}.qcow2", day))));
    }
    // Restored by QEMU's commit, all the way down.
    for (int day = 4; day >= 1; --day) {
      MustRun(fmt::format("qemu-img commit -q {}", File(fmt::format("day{}.qcow2", day))));
    }
    MustRun("qemu-img compare " + File("was4") + " " + File("day0.qcow2"));
  }
}

TEST_F(BackupTest, AnIncrementalHoldsWhatIsDirty) {
  MustRun("qemu-img create -q -f qcow2 " + File("disk") + " 64M && qemu-io -c 'write -P 1 0 32M' " +
          File("disk"));
  Do({"backup", "--full", "--new-bitmap", "b", File("disk"), File("full")});
  MustRun("qemu-io -c 'write -P 2 1M 64k' -c 'write -z 2M 64k' " + File("disk"));
  Do({"backup", "--since", "b", "-b", File("full"), "-F", "qcow2", File("disk"), File("inc")});
  auto map = nlohmann::json::parse(MustRun("qemu-img map --output=json " + File("inc")));
  uint64_t own = 0;
  for (const auto& entry : map) own += entry["depth"] == 0 ? entry["length"].get<uint64_t>() : 0;
  EXPECT_EQ(own, 131072u);
  MustRun("qemu-img compare " + File("disk") + " " + File("inc"));
  EXPECT_THAT(Platter({"map", "--bitmap", "b", File("disk")}).out, HasSubstr("0x100000"))
      << "it was not to begin anew";
}

TEST_F(BackupTest, BackupRefusals) {
  MustRun("qemu-img create -q -f qcow2 " + File("a") + " 8M");
  EXPECT_THAT(Fails({"backup", File("a"), File("b")}), HasSubstr("--full or --since"));
  EXPECT_THAT(Fails({"backup", "--since", "x", File("a"), File("b")}), HasSubstr("-b FILE"));
  EXPECT_THAT(
      Fails({"backup", "--since", "x", "-b", File("a"), "-F", "qcow2", File("a"), File("b")}),
      HasSubstr("no such bitmap"));
  EXPECT_FALSE(std::ifstream(File("b")).good());
  // A bitmap that was not told of every write.
  Do({"backup", "--full", "--new-bitmap", "x", File("a"), File("full")});
  Do({"bitmap", "--disable", File("a"), "x"});
  MustRun("qemu-io -c 'write -P 7 1M 64k' " + File("a"));
  const std::vector<std::string> since{"backup", "--since", "x",       "-b",     File("full"),
                                       "-F",     "qcow2",   File("a"), File("b")};
  EXPECT_THAT(Fails(since), HasSubstr("is disabled"));
  EXPECT_FALSE(std::ifstream(File("b")).good());
  Do({"bitmap", "--enable", File("a"), "x"});
  Do(since);
}

// A disabled bitmap begins anew as one that follows the writes.
TEST_F(BackupTest, ABitmapThatBeginsAnewIsEnabled) {
  MustRun("qemu-img create -q -f qcow2 " + File("a") + " 8M && qemu-img bitmap --add --disable " +
          File("a") + " x");
  Do({"backup", "--full", "--new-bitmap", "x", File("a"), File("full")});
  MustRun("qemu-io -c 'write -P 7 1M 64k' " + File("a"));
  Do({"backup", "--since", "x", "-b", File("full"), "-F", "qcow2", File("a"), File("b")});
  MustRun("qemu-img compare " + File("a") + " " + File("b"));
}

TEST_F(BackupTest, ConvertKeepsSnapshots) {
  constexpr uint64_t kSize = 8 * 1024 * 1024;
  model::Random random(4);
  MustRun(fmt::format("qemu-img create -q -f qcow2 {} {}", File("a"), kSize));
  for (const char* snapshot : {"one", "two", "three"}) {
    RandomWrites(File("a"), random, kSize);
    MustRun("qemu-img snapshot -c " + std::string(snapshot) + " " + File("a"));
  }
  RandomWrites(File("a"), random, kSize);
  Do({"convert", "-O", "qcow2", "-o", "cluster_size=4k", "--with-snapshots", File("a"), File("b")});
  MustRun("qemu-img check " + File("b") + " && qemu-img compare " + File("a") + " " + File("b"));
  for (const char* snapshot : {"one", "two", "three"}) {
    for (const char* image : {"a", "b"}) {
      MustRun(fmt::format("qemu-img convert -l snapshot.name={} -O raw {} {}", snapshot,
                          File(image), File(image) + ".raw"));
    }
    MustRun("cmp " + File("a.raw") + " " + File("b.raw"));
  }
  Ran dropped = Platter({"convert", "-O", "qcow2", File("a"), File("c")});
  EXPECT_EQ(dropped.code, 0);
  EXPECT_THAT(dropped.err, HasSubstr("3 snapshots are left out"));
  EXPECT_THAT(Fails({"convert", "-O", "raw", "--with-snapshots", File("a"), File("d")}),
              HasSubstr("raw images hold no snapshots"));
  EXPECT_FALSE(std::ifstream(File("d")).good());
}

TEST_F(BackupTest, SnapshotDiff) {
  MustRun("qemu-img create -q -f qcow2 " + File("a") + " 8M && qemu-io -c 'write 0 1M' " +
          File("a") + " && qemu-img snapshot -c one " + File("a") +
          " && qemu-io -c 'write 512k 64k' -c "
          "'write 4M 128k' " +
          File("a") + " && qemu-img snapshot -c two " + File("a") +
          " && qemu-io -c 'write -z 0 64k' " + File("a"));
  EXPECT_EQ(Platter({"snapshot", "diff", "one", "two", File("a")}).out,
            "Offset          Length          \n0x80000         0x10000         \n"
            "0x400000        0x20000         \n196608 bytes may differ\n");
  auto json = nlohmann::json::parse(
      Platter({"snapshot", "diff", "--output", "json", "two", File("a")}).out);
  EXPECT_EQ(json, nlohmann::json::parse(R"([{"start":0,"length":65536}])"));
  EXPECT_EQ(Platter({"snapshot", "diff", "--output", "json", "one", "one", File("a")}).out, "[]\n");
  Do({"snapshot", "diff", "--picture", File("p.html"), "one", File("a")});
  std::ifstream html(File("p.html"));
  std::string text{std::istreambuf_iterator<char>(html), {}};
  EXPECT_THAT(text, HasSubstr("changed: 256 KiB"));
  EXPECT_THAT(text, testing::Not(HasSubstr("allocated zeros")));
  EXPECT_THAT(Fails({"snapshot", "diff", "three", File("a")}), HasSubstr("no snapshot"));
  EXPECT_THAT(Fails({"snapshot", "nonsense", "one", File("a")}), HasSubstr("diff SNAP"));
}

}  // namespace
}  // namespace platter
