// The plugin in nbdkit, with nbdkit's filters above it and other people's clients as judges.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>

#include "tests/interop/qemu.h"

namespace platter {
namespace {

using testing_support::MustRun;
using testing_support::Outcome;
using testing_support::Shell;
using testing_support::TempFolder;

class NbdkitPluginTest : public testing::Test {
 protected:
  NbdkitPluginTest()
      : plugin_(std::filesystem::absolute("nbd/plugin/nbdkit-platter-plugin.so")),
        raw_(File("source.raw")) {
    MustRun("truncate -s 8M " + raw_ +
            " && qemu-io -f raw -c 'write -P 17 1M 300k' -c 'write -P 0 3M 64k' -c 'write -P 99 "
            "5000k 4k' " +
            raw_);
  }

  std::string File(const std::string& name) { return folder_.File(name); }

  // Runs `client`, in which $uri and $nbd mean the server, against nbdkit with these arguments.
  // Only a failed test prints what nbdkit says.
  std::string Nbdkit(const std::string& arguments, const std::string& client) {
    return "nbdkit -U - " + Filters(arguments) + " --run '" + client + "'";
  }
  // "--filter=a plugin-arguments": nbdkit wants the plugin's file behind the flags.
  std::string Filters(const std::string& arguments) {
    size_t end = arguments.find("@");
    return arguments.substr(0, end) + plugin_ + " " + arguments.substr(end + 1);
  }

  std::string Convert(const std::string& format, const std::string& options = "") {
    const std::string path = File("disk." + format);
    MustRun("qemu-img convert -q -f raw -O " + format + " " + options + " " + raw_ + " " + path);
    return path;
  }

  const TempFolder folder_;
  const std::string plugin_, raw_;
};

TEST_F(NbdkitPluginTest, EveryFormatReadsAsItIs) {
  for (const char* format : {"qcow2", "vmdk", "vdi", "vhdx", "vpc"}) {
    const std::string path =
        Convert(format, format == std::string("vpc") ? "-o force_size=on" : "");
    MustRun(Nbdkit("-r @" + path, "nbdcopy \"$uri\" " + File("out.raw")));
    MustRun("cmp " + raw_ + " " + File("out.raw"));
  }
}

TEST_F(NbdkitPluginTest, NbdinfoSeesWhatItCanDo) {
  const std::string path = Convert("qcow2");
  auto json = nlohmann::json::parse(
      MustRun(Nbdkit("@file=" + path, "nbdinfo --json \"$uri\" 2>/dev/null")));
  const auto& e = json["exports"][0];
  EXPECT_EQ(e["export-size"], 8 << 20);
  EXPECT_EQ(e["description"], "qcow2");
  EXPECT_EQ(e["is_read_only"], false);
  for (const char* can :
       {"can_cache", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"})
    EXPECT_EQ(e[can], true) << can;
  const std::string map = MustRun(Nbdkit("-r @" + path, "nbdinfo --map \"$uri\""));
  const std::string want =
      MustRun("nbdkit -U - -r file " + raw_ + " --run 'nbdinfo --map \"$uri\"'");
  EXPECT_NE(map.find("1048576"), std::string::npos) << map << want;
  // 64 KiB of zeros in clusters of their own are zeros, and the rest is as in the raw file.
  EXPECT_NE(map.find("hole"), std::string::npos) << map;
}

TEST_F(NbdkitPluginTest, WritesArriveInTheImage) {
  for (const char* format : {"qcow2", "vdi", "vhdx"}) {
    const std::string path = File(std::string("new.") + format);
    MustRun("qemu-img create -q -f " + std::string(format) + " " + path + " 8M");
    MustRun(Nbdkit("@" + path, "nbdcopy " + raw_ + " \"$uri\""));
    MustRun("qemu-img check -q -f " + std::string(format) + " " + path);
    MustRun("qemu-img compare -f raw -F " + std::string(format) + " " + raw_ + " " + path);
  }
}

TEST_F(NbdkitPluginTest, QemuWritesZeroesAndTrims) {
  const std::string path = Convert("qcow2");
  MustRun(
      Nbdkit("@" + path,
             "qemu-io -f raw -c \"write -P 5 100k 70k\" -c \"write -z 1M 100k\" -c \"write -zu "
             "1200k 64k\" -c \"discard 5000k 64k\" -c flush -c \"read -P 5 100k 70k\" -c \"read "
             "-P 0 1M 100k\" -c \"read -P 17 1124k 76k\" \"$uri\""));
  MustRun(
      "qemu-io -f qcow2 -c 'read -P 5 100k 70k' -c 'read -P 0 1M 100k' -c 'read -P 0 1200k 64k' "
      "-c 'read -P 17 1124k 76k' " +
      path);
  MustRun("qemu-img check -q " + path);
}

TEST_F(NbdkitPluginTest, WorksUnderFilters) {
  const std::string path = Convert("qcow2");
  const std::string copy = "nbdcopy \"$uri\" " + File("out.raw");
  for (const char* filters :
       {"--filter=cow -r", "--filter=cache", "--filter=readahead", "--filter=blocksize",
        "--filter=cow --filter=cache --filter=readahead --filter=blocksize"}) {
    MustRun(Nbdkit(std::string(filters) + " @" + path, copy));
    MustRun("cmp " + raw_ + " " + File("out.raw"));
  }
  // Writes through the cache and in odd pieces.
  MustRun("qemu-img create -q -f qcow2 " + File("new.qcow2") + " 8M");
  MustRun(Nbdkit("--filter=cache --filter=blocksize @" + File("new.qcow2") + " minblock=4k",
                 "nbdcopy --flush " + raw_ + " \"$uri\""));
  MustRun("qemu-img compare -f raw -F qcow2 " + raw_ + " " + File("new.qcow2"));
}

TEST_F(NbdkitPluginTest, PartitionsByFilter) {
  MustRun("truncate -s 16M " + File("p.raw") +
          " && printf 'start=2048,size=16384,type=83\\n' | "
          "sfdisk -q " +
          File("p.raw") + " && dd status=none conv=notrunc bs=1M seek=1 if=" + raw_ +
          " of=" + File("p.raw") + " && qemu-img convert -f raw -O qcow2 " + File("p.raw") + " " +
          File("p.qcow2"));
  MustRun(Nbdkit("-r --filter=partition @" + File("p.qcow2") + " partition=1",
                 "nbdcopy \"$uri\" " + File("out.raw")));
  MustRun("cmp " + raw_ + " " + File("out.raw"));
}

TEST_F(NbdkitPluginTest, ExportsAreListed) {
  const std::string one = Convert("qcow2"), two = Convert("vmdk");
  MustRun("qemu-img snapshot -c before " + one + " && qemu-io -f qcow2 -c 'write -P 1 0 1M' " +
          one);
  const std::string both = "-r @file=" + one + " file=" + two;
  const std::string list = MustRun(Nbdkit(both, "nbdinfo --list \"$uri\""));
  for (const char* name : {"\"disk.qcow2\"", "\"disk.qcow2@before\"", "\"disk.vmdk\""})
    EXPECT_NE(list.find(name), std::string::npos) << list;
  for (const char* name : {"disk.qcow2@before", "disk.vmdk"}) {
    MustRun(Nbdkit(both, std::string("nbdcopy \"nbd+unix:///") + name + "?socket=$unixsocket\" " +
                             File("out.raw")));
    MustRun("cmp " + raw_ + " " + File("out.raw"));
  }
  MustRun(Nbdkit("-r @" + one + " snapshot=before", "nbdcopy \"$uri\" " + File("out.raw")));
  MustRun("cmp " + raw_ + " " + File("out.raw"));
  EXPECT_NE(Shell(Nbdkit(both, "nbdinfo \"nbd+unix:///none?socket=$unixsocket\"")).exit_code, 0);
}

TEST_F(NbdkitPluginTest, TheGateHolds) {
  MustRun("mkdir " + File("elsewhere") + " " + File("in") + " && mv " + Convert("qcow2") + " " +
          File("elsewhere/b") + " && qemu-img create -q -f qcow2 -F qcow2 -b " +
          File("elsewhere/b") + " " + File("in/o.qcow2"));
  const std::string client = "nbdcopy \"$uri\" " + File("out.raw");
  Outcome refused = Shell(Nbdkit("-r @" + File("in/o.qcow2"), client));
  EXPECT_NE(refused.exit_code, 0);
  EXPECT_NE(refused.output.find("outside the image"), std::string::npos) << refused.output;
  for (const std::string& more :
       {"trust=" + File("elsewhere"), std::string("allow-external=yes")}) {
    MustRun(Nbdkit("-r @" + File("in/o.qcow2") + " " + more, client));
    MustRun("cmp " + raw_ + " " + File("out.raw"));
  }
}

TEST_F(NbdkitPluginTest, MistakesAreToldAtStart) {
  for (const std::string& arguments :
       {std::string("-r @"), "-r @" + File("none"), "-r @" + raw_ + " format=nonsense",
        "-r @" + raw_ + " wrong=1", "-r @" + raw_ + " allow-external=maybe",
        "-r @file=" + raw_ + " file=" + raw_}) {
    EXPECT_NE(Shell(Nbdkit(arguments, "true")).exit_code, 0) << arguments;
  }
  MustRun("nbdkit " + plugin_ + " --dump-plugin | grep -q platter_formats=.*qcow2");
}

}  // namespace
}  // namespace platter
