// `platter serve` as its clients see it: libnbd (nbdinfo, nbdcopy, python), QEMU, fio.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "tests/interop/served.h"

namespace platter {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::MustRun;
using testing_support::MustRunPython;
using testing_support::Served;
using testing_support::Shell;
using testing_support::TempFolder;

class NbdServeTest : public testing::Test {
 protected:
  std::string File(const std::string& name) const { return folder_.File(name); }

  // A qcow2 image of 64 MiB with data, zeros and holes.
  std::string Image(const std::string& name = "disk.qcow2") const {
    MustRun("qemu-img create -q -f qcow2 " + File(name) +
            " 64M && qemu-io -f qcow2 "
            "-c 'write -P 17 1M 300k' -c 'write -z 8M 1M' -c 'write -P 99 40000k 5M' " +
            File(name));
    return File(name);
  }

  TempFolder folder_;
};

TEST_F(NbdServeTest, NbdinfoDescribesIt) {
  Served served(folder_, Image());
  json info = json::parse(MustRun("nbdinfo --json " + served.Uri()));
  EXPECT_EQ(info["protocol"], "newstyle-fixed");
  EXPECT_EQ(info["structured"], true);
  json disk = info["exports"][0];
  EXPECT_EQ(disk["export-size"], 64 << 20);
  EXPECT_EQ(disk["is_read_only"], true);
  EXPECT_EQ(disk["can_multi_conn"], true);
  EXPECT_EQ(disk["can_df"], true);
  EXPECT_EQ(disk["can_cache"], true);
  EXPECT_EQ(disk["block_size_minimum"], 1);
  EXPECT_EQ(disk["block_size_maximum"], 32 << 20);
  EXPECT_THAT(disk["contexts"].get<std::vector<std::string>>(),
              ElementsAre("base:allocation", "qemu:allocation-depth"));
  EXPECT_EQ(Shell("nbdinfo --is read-only " + served.Uri()).exit_code, 0);
  EXPECT_NE(Shell("nbdinfo --can write " + served.Uri()).exit_code, 0);
  EXPECT_NE(Shell("nbdinfo " + served.Uri("nothing")).exit_code, 0);
  MustRun("PATH=/usr/bin:$PATH nbdsh -u " + served.Uri() +
          " -c 'assert h.pread(1, 1 << 20) == bytes([17])'");
}

TEST_F(NbdServeTest, NbdinfoSeesAWritableDisk) {
  Served served(folder_, "--writable --rotational " + Image());
  for (const char* ability : {"write", "flush", "fua", "trim", "zero", "fast-zero", "multi-conn"}) {
    EXPECT_EQ(Shell("nbdinfo --can " + std::string(ability) + " " + served.Uri()).exit_code, 0)
        << ability;
  }
  EXPECT_EQ(Shell("nbdinfo --is rotational " + served.Uri()).exit_code, 0);
}

// What nbdinfo and qemu-img make of our block status is what qemu-img makes of the image itself.
TEST_F(NbdServeTest, MapsAgree) {
  const std::string image = Image();
  Served served(folder_, image);
  auto data = [](const std::string& text) {
    std::vector<std::pair<uint64_t, uint64_t>> runs;
    for (const json& entry : json::parse(text)) {
      bool is_data = entry.contains("data") ? entry["data"].get<bool>() : entry["type"] == 0;
      if (!is_data) continue;
      uint64_t start = entry.contains("start") ? entry["start"] : entry["offset"];
      uint64_t length = entry["length"];
      if (!runs.empty() && runs.back().first + runs.back().second == start) {
        runs.back().second += length;
      } else {
        runs.emplace_back(start, length);
      }
    }
    return runs;
  };
  const auto expected = data(MustRun("qemu-img map --output json -U -f qcow2 " + image));
  EXPECT_FALSE(expected.empty());
  EXPECT_EQ(data(MustRun("nbdinfo --map --json " + served.Uri())), expected);
  EXPECT_EQ(data(MustRun("qemu-img map --output json -f raw " + served.Uri())), expected);
  EXPECT_THAT(MustRun("nbdinfo --map=qemu:allocation-depth --totals " + served.Uri()),
              HasSubstr("local"));
}

TEST_F(NbdServeTest, CopiesBothWays) {
  const std::string image = Image(), copy = File("copy.raw");
  {
    Served served(folder_, image);
    MustRun("nbdcopy " + served.Uri() + " " + copy);
    MustRun("qemu-img compare -U -f qcow2 -F raw " + image + " " + copy);
    MustRun("qemu-img compare -U -f qcow2 -F raw " + image + " " + served.Uri());
  }
  const std::string target = File("target.qcow2");
  MustRun("qemu-img create -q -f qcow2 " + target + " 64M");
  {
    Served served(folder_, "--writable " + target);
    MustRun("nbdcopy --flush " + copy + " " + served.Uri());
  }
  MustRun("qemu-img check -q " + target);
  MustRun("qemu-img compare -f qcow2 -F qcow2 " + image + " " + target);
  // Nothing was written where nothing is.
  EXPECT_LT(std::filesystem::file_size(target), 8u << 20);
  MustRun("qemu-img create -q -f qcow2 " + File("second.qcow2") + " 64M");
  {
    Served served(folder_, "--writable " + File("second.qcow2"));
    MustRun("qemu-img convert -n -f qcow2 -O raw " + image + " " + served.Uri());
  }
  MustRun("qemu-img compare -f qcow2 -F qcow2 " + image + " " + File("second.qcow2"));
}

TEST_F(NbdServeTest, QemuIoReadsAndWrites) {
  const std::string image = Image(), mirror = File("mirror.raw");
  MustRun("qemu-img convert -f qcow2 -O raw " + image + " " + mirror);
  const std::string commands =
      " -c 'write -P 1 0 512' -c 'write -f -P 2 12345 70000' -c 'write -z 20M 3M' "
      "-c 'write -z -u 1M 64k' -c 'writev -P 3 50M 4k 8k' -c 'flush' -c 'read -P 2 12345 70000' "
      "-c 'read -P 0 20M 3M' -c 'aio_write -P 4 30M 1M' -c 'aio_write -P 5 31M 1M' "
      "-c aio_flush ";
  MustRun("qemu-io -f raw" + commands + mirror);
  {
    Served served(folder_, "--writable " + image);
    MustRun("qemu-io -f raw" + commands + served.Uri());
    MustRun("qemu-io -f raw -c 'discard 60M 4M' " + served.Uri());
  }
  MustRun("qemu-img check -q " + image);
  MustRun("qemu-io -f raw -c 'discard 60M 4M' " + mirror);
  MustRun("qemu-img compare -f qcow2 -F raw " + image + " " + mirror);
}

TEST_F(NbdServeTest, LibnbdSeesTheProtocol) {
  Served served(folder_, "--writable " + Image());
  MustRunPython(folder_, "path = '" + served.socket() + R"('
import nbd
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.add_meta_context('qemu:allocation-depth')
h.set_strict_mode(0)
h.connect_unix(path)
assert h.get_structured_replies_negotiated()
h.pwrite(b'x' * 100, 5000)
assert h.pread(102, 4999) == b'\0' + b'x' * 100 + b'\0'
h.pwrite(b'y' * (3 << 20), 10 << 20, nbd.CMD_FLAG_FUA)
assert h.pread(3 << 20, 10 << 20, nbd.CMD_FLAG_DF) == b'y' * (3 << 20)
chunks = []
def chunk(data, offset, status, error):
    chunks.append((offset, len(data), status))
h.pread_structured(4 << 20, (10 << 20) - (512 << 10), chunk)
assert (chunks[0][2], chunks[1][2], chunks[2][2]) == (nbd.READ_HOLE, nbd.READ_DATA, nbd.READ_HOLE), chunks
h.cache(64 << 20, 0)
h.zero(1 << 20, 10 << 20)
assert h.pread(2 << 20, 10 << 20) == bytes(1 << 20) + b'y' * (1 << 20)
h.trim(1 << 20, 11 << 20)
entries = {}
def extent(context, offset, entry, error):
    entries[context] = entry
h.block_status(64 << 20, 0, extent)
assert set(entries) == {'base:allocation', 'qemu:allocation-depth'}
h.flush()
for call, error in ((lambda: h.pread(1, 64 << 20), 'EINVAL'),
                    (lambda: h.pwrite(b'1', 64 << 20), 'ENOSPC'),
                    (lambda: h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE), 'ENOTSUP EOPNOTSUPP'),
                    (lambda: h.pread(1, 0, 1 << 9), 'EINVAL')):
    try:
        call()
    except nbd.Error as e:
        assert e.errno in error, (e, error)
    else:
        raise Exception('not refused')
# What one connection flushed, another sees.
g = nbd.NBD()
g.connect_unix(path)
h.pwrite(b'both', 123)
assert g.pread(4, 123) == b'both'
h.shutdown()
g.shutdown()
)");
}

TEST_F(NbdServeTest, OldClientsSpeakTheBaseline) {
  Served served(folder_, "--writable " + Image());
  MustRunPython(folder_, "path = '" + served.socket() + R"('
import nbd
for flags in (0, nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE, nbd.HANDSHAKE_FLAG_NO_ZEROES):
    h = nbd.NBD()
    h.set_request_structured_replies(False)
    h.set_handshake_flags(flags)
    h.connect_unix(path)
    assert not h.get_structured_replies_negotiated()
    h.pwrite(b'old', 77)
    assert h.pread(3, 77) == b'old'
    assert h.pread(300 << 10, 1 << 20) == b'\x11' * (300 << 10)
    h.flush()
    h.shutdown()
)");
}

TEST_F(NbdServeTest, PartitionsAndSnapshotsAreExports) {
  const std::string raw = File("mbr.raw"), gpt = File("gpt.raw");
  MustRun("truncate -s 64M " + raw + " && parted -s " + raw +
          " mklabel msdos mkpart primary 1MiB 8MiB mkpart extended 8MiB 60MiB "
          "mkpart logical 9MiB 20MiB mkpart logical 21MiB 30MiB");
  MustRun("truncate -s 64M " + gpt + " && parted -s " + gpt +
          " mklabel gpt mkpart first 1MiB 8MiB mkpart second 8MiB 60MiB");
  MustRun("qemu-io -f raw -c 'write -P 3 9M 1M' " + raw +
          " && qemu-io -f raw -c 'write -P 7 8M 1M' " + gpt);
  MustRun("qemu-img convert -f raw -O qcow2 " + gpt + " " + File("gpt.qcow2") +
          " && qemu-img snapshot -c monday " + File("gpt.qcow2") +
          " && qemu-io -f qcow2 -c 'write -P 8 8M 1M' " + File("gpt.qcow2"));
  MustRun("qemu-img convert -f raw -O vmdk " + raw + " " + File("mbr.vmdk"));

  Served served(folder_, "--writable " + File("gpt.qcow2") + " " + File("mbr.vmdk"));
  std::vector<std::string> names;
  const json list = json::parse(MustRun("nbdinfo --list --json " + served.Uri()));
  for (const json& each : list["exports"]) {
    names.push_back(each["export-name"]);
  }
  EXPECT_THAT(names, ElementsAre("gpt", "gpt/p1", "gpt/p2", "gpt@monday", "mbr", "mbr/p1", "mbr/p5",
                                 "mbr/p6"));
  EXPECT_THAT(MustRun("nbdinfo " + served.Uri("gpt/p2")), HasSubstr("'second'"));
  MustRun("qemu-io -r -f raw -c 'read -P 8 0 1M' " + served.Uri("gpt/p2"));
  MustRun("qemu-io -r -f raw -c 'read -P 7 8M 1M' " + served.Uri("gpt@monday"));
  MustRun("qemu-io -r -f raw -c 'read -P 3 0 1M' " + served.Uri("mbr/p5"));
  EXPECT_NE(Shell("qemu-io -f raw -c 'write 0 1k' " + served.Uri("gpt@monday")).exit_code, 0);
  MustRun("qemu-io -f raw -c 'write -P 9 4M 1M' " + served.Uri("gpt/p2"));
  MustRun("qemu-io -r -f raw -c 'read -P 9 12M 1M' " + served.Uri("gpt"));
  MustRun("qemu-io -r -f raw -c 'read -P 0 12M 1M' " + served.Uri("gpt@monday"));
  // A partition ends where it ends.
  EXPECT_EQ(MustRun("nbdinfo --size " + served.Uri("mbr/p6")), std::to_string(9 << 20) + "\n");
}

TEST_F(NbdServeTest, DirtyBitmapsAreContexts) {
  const std::string image = Image();
  MustRun("qemu-img bitmap --add -g 64k " + image +
          " backup && qemu-io -f qcow2 "
          "-c 'write -P 1 2M 128k' -c 'write -P 1 30M 64k' " +
          image + " && qemu-img bitmap --disable " + image + " backup");
  Served served(folder_, image);
  std::vector<std::vector<uint64_t>> dirty;
  for (const json& run :
       json::parse(MustRun("nbdinfo --map=qemu:dirty-bitmap:backup --json " + served.Uri()))) {
    if (run["type"] == 1) dirty.push_back({run["offset"], run["length"]});
  }
  EXPECT_THAT(dirty, ElementsAre(ElementsAre(2 << 20, 128 << 10), ElementsAre(30 << 20, 64 << 10)));
}

// What changed since a snapshot is a context of the image, of its partitions and of its other
// snapshots, and says what `platter snapshot diff` says.
TEST_F(NbdServeTest, SnapshotDifferencesAreContexts) {
  const std::string image = File("disk.qcow2"), raw = File("disk.raw");
  MustRun("truncate -s 64M " + raw + " && parted -s " + raw +
          " mklabel gpt mkpart first 1MiB 8MiB mkpart second 8MiB 60MiB && qemu-img convert -f raw "
          "-O qcow2 " +
          raw + " " + image);
  auto write = [&](const std::string& where) {
    MustRun("qemu-io -f qcow2 -c 'write -P 5 " + where + "' " + image);
  };
  write("2M 1M");
  MustRun("qemu-img snapshot -c monday " + image);
  write("10M 128k");
  MustRun("qemu-img snapshot -c tuesday " + image);
  write("2M 64k");
  const std::string program = testing_support::PlatterProgram();
  Served served(folder_, "--writable " + image);
  // The runs that are marked, moved by `by`.
  auto changed = [&](const std::string& since, const std::string& of, uint64_t by = 0) {
    std::vector<std::pair<uint64_t, uint64_t>> runs;
    for (const json& run : json::parse(MustRun(
             "nbdinfo --json --map=platter:snapshot-diff:" + since + " " + served.Uri(of)))) {
      if (run["type"] == 1) runs.emplace_back(run["offset"].get<uint64_t>() + by, run["length"]);
    }
    return runs;
  };
  auto told = [&](const std::string& arguments) {
    std::vector<std::pair<uint64_t, uint64_t>> runs;
    for (const json& run : json::parse(
             MustRun(program + " snapshot diff --force-share --output json " + arguments))) {
      runs.emplace_back(run["start"], run["length"]);
    }
    return runs;
  };
  const std::pair<uint64_t, uint64_t> at2{2 << 20, 64 << 10}, at10{10 << 20, 128 << 10};
  EXPECT_THAT(changed("monday", ""), ElementsAre(at2, at10));
  EXPECT_THAT(changed("monday", ""), told("monday " + image));
  EXPECT_THAT(changed("tuesday", ""), ElementsAre(at2));
  EXPECT_THAT(changed("monday", "disk@tuesday"), ElementsAre(at10));
  EXPECT_THAT(changed("monday", "disk@tuesday"), told("monday tuesday " + image));
  EXPECT_THAT(changed("monday", "disk@monday"), ElementsAre());
  EXPECT_THAT(changed("monday", "disk/p2", 8 << 20), ElementsAre(at10));
  EXPECT_THAT(MustRun("nbdinfo --json " + served.Uri()),
              HasSubstr("\"platter:snapshot-diff:tuesday\""));
  // What clients write is told at once; rewriting in place changes nothing more.
  MustRun("qemu-io -f raw -c 'write -P 6 40M 64k' -c 'write -P 6 10M 64k' " + served.Uri());
  EXPECT_THAT(changed("tuesday", ""),
              ElementsAre(at2, std::pair(10u << 20, 64u << 10), std::pair(40u << 20, 64u << 10)));
  EXPECT_THAT(changed("monday", "disk@tuesday"), ElementsAre(at10));
  MustRun("qemu-io -r -f raw -c 'read -P 5 10M 128k' " + served.Uri("disk@tuesday"));
}

// No client in Debian knows the extension: a script speaks it.
TEST_F(NbdServeTest, ClientsThatAskMayResize) {
  const std::string image = File("disk.qcow2"), raw = File("disk.raw");
  MustRun("truncate -s 64M " + raw + " && parted -s " + raw +
          " mklabel msdos mkpart primary 1MiB 30MiB && qemu-img convert -f raw -O qcow2 " + raw +
          " " + image);
  {
    Served served(folder_, "--writable " + image);
    MustRunPython(folder_, "path = '" + served.socket() + R"('
import nbd, socket, struct
s = socket.socket(socket.AF_UNIX)
s.connect(path)
f = s.makefile('rwb')
def send(*parts):
    f.write(b''.join(parts))
    f.flush()
assert f.read(18)[:8] == b'NBDMAGIC'
send(struct.pack('>I', 3))
send(struct.pack('>QIIIHH', 0x49484156454f5054, 7, 8, 0, 1, 0x8008))  # GO, asking for resizing
flags = None
while True:
    magic, option, kind, length = struct.unpack('>QIII', f.read(20))
    data = f.read(length)
    if kind == 1:
        break
    assert kind == 3, kind
    if data[:2] == bytes(2):
        flags = struct.unpack('>H', data[10:])[0]
assert flags & (1 << 9)
def resize(size):
    send(struct.pack('>IHHQQI', 0x25609513, 0, 8, 77, size, 0))
    magic, error, cookie = struct.unpack('>IIQ', f.read(16))
    assert (magic, cookie) == (0x67446698, 77)
    return error
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_unix(path)
assert h.get_size() == 64 << 20
assert resize(100 << 20) == 0
h.pwrite(b'new', 99 << 20)
assert resize(20 << 20) == 1  # there is a partition
assert resize(0) == 1
assert resize(1 << 62) == 22
assert resize(40 << 20) == 0
try:
    h.pread(1, 50 << 20)
except nbd.Error as e:
    assert e.errno == 'ENOSPC', e
else:
    raise Exception('not refused')
assert resize(80 << 20) == 0
assert h.pread(512, 50 << 20) == bytes(512)
h.shutdown()
g = nbd.NBD()
g.connect_unix(path)
assert g.get_size() == 80 << 20
g.shutdown()
)");
  }
  MustRun("qemu-img check -q " + image);
  EXPECT_EQ(json::parse(MustRun("qemu-img info --output json " + image))["virtual-size"], 80 << 20);
}

// A file system made, filled and checked by way of a FUSE file that is our export.
TEST_F(NbdServeTest, NbdfuseMountsIt) {
  const std::string image = File("disk.qcow2"), mount = File("mount");
  MustRun("qemu-img create -q -f qcow2 " + image + " 64M && mkdir " + mount);
  {
    Served served(folder_, "--writable " + image);
    MustRun("nbdfuse " + mount + " " + served.Uri() + " & until test -f " + mount +
            "/nbd || ! kill -0 $!; do sleep 0.05; done; "
            "mkfs.ext4 -q -F -d /usr/include/linux " +
            mount + "/nbd && e2fsck -fn " + mount + "/nbd && sync -f " + mount +
            "/nbd; ok=$?; umount " + mount + " && wait $! && exit $ok");
  }
  MustRun("qemu-img check -q " + image + " && qemu-img convert -f qcow2 -O raw " + image + " " +
          File("out.raw") + " && e2fsck -fn " + File("out.raw"));
  MustRun("debugfs -R 'cat /nbd.h' " + File("out.raw") +
          " 2>/dev/null | cmp - /usr/include/linux/nbd.h");
}

TEST_F(NbdServeTest, AnOverlayKeepsNothing) {
  const std::string image = Image();
  const std::string before = MustRun("sha256sum " + image);
  {
    Served served(folder_, "--overlay " + image);
    MustRun(
        "qemu-io -f raw -c 'write -P 5 0 2M' -c 'write -z 8M 1M' -c 'discard 40M 1M' "
        "-c flush " +
        served.Uri());
    MustRun("qemu-io -r -f raw -c 'read -P 5 0 2M' -c 'read -P 99 41M 1M' " + served.Uri());
  }
  EXPECT_EQ(MustRun("sha256sum " + image), before);
}

TEST_F(NbdServeTest, FioVerifiesWhatItWrote) {
  const std::string image = File("fio.qcow2");
  MustRun("qemu-img create -q -f qcow2 " + image + " 64M");
  {
    Served served(folder_, "--writable " + image);
    MustRun("fio --name=verify --ioengine=nbd --uri=" + served.Uri() +
            " --rw=randwrite --bsrange=512-128k --bs_unaligned=0 --iodepth=16 --size=64M "
            "--io_size=64M --verify=crc32c --verify_fatal=1 --fsync=200 --randseed=7 --minimal");
  }
  MustRun("qemu-img check -q " + image);
}

TEST_F(NbdServeTest, SeveralListenersAndMetrics) {
  const std::string image = Image();
  Served served(folder_, "--listen 127.0.0.1:0 --listen '[::1]:0' --metrics " +
                             File("metrics.sock") + " --stats " + image);
  MustRun("nbdcopy " + served.Uri() + " null:");
  const std::string curl = "curl -sf --unix-socket " + File("metrics.sock") + " http://localhost";
  EXPECT_THAT(MustRun(curl + "/metrics"),
              HasSubstr("platter_nbd_requests_total{export=\"disk\",command=\"read\"}"));
  json stats = json::parse(MustRun(curl + "/stats"));
  EXPECT_EQ(stats["exports"][0]["name"], "disk");
  EXPECT_GT(stats["exports"][0]["bytes-read"], 5 << 20);
  EXPECT_NE(Shell(curl + "/other").exit_code, 0);
  served.Stop();
  EXPECT_GE(json::parse(served.Log())["connections"]["accepted"], 1);
  EXPECT_FALSE(std::filesystem::exists(served.socket()));
}

TEST_F(NbdServeTest, SocketActivationAndExitAfterLast) {
  MustRunPython(folder_, "folder = '" + File("") + "'\nprogram = '" +
                             testing_support::PlatterProgram() + "'\nimage = '" + Image() + R"('
import nbd, os, socket
path = folder + 'activated.sock'
s = socket.socket(socket.AF_UNIX)
s.bind(path)
s.listen()
child = os.fork()
if child == 0:
    os.dup2(s.fileno(), 3)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')
    os.execv(program, [program, 'serve', '--exit-after-last', image])
h = nbd.NBD()
h.connect_unix(path)
g = nbd.NBD()
g.connect_unix(path)
assert h.pread(1, 1 << 20) == b'\x11'
h.shutdown()
assert g.pread(1, 1 << 20) == b'\x11'
g.shutdown()
assert os.waitpid(child, 0)[1] == 0
)");
}

TEST_F(NbdServeTest, ForkReturnsWhenReadyOrSaysWhyNot) {
  const std::string image = Image(), program = testing_support::PlatterProgram();
  const std::string where = " --socket " + File("f.sock") + " --pid-file " + File("f.pid") + " ";
  MustRun(program + " serve --fork --exit-after-last" + where + image);
  MustRun("nbdinfo 'nbd+unix:///?socket=" + File("f.sock") + "'");
  for (int i = 0; i < 500 && std::filesystem::exists(File("f.pid")); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_FALSE(std::filesystem::exists(File("f.pid")));
  auto failed = Shell(program + " serve --fork" + where + File("missing.img"));
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_THAT(failed.output, HasSubstr("missing.img"));
}

TEST_F(NbdServeTest, WarnsOnlyWhereOthersCanConnect) {
  const std::string image = Image();
  Served open(folder_, "--listen '*:0' " + image, "open");
  EXPECT_THAT(open.Log(), HasSubstr("can be reached from other machines without TLS"));
  Served closed(folder_, "--listen :0 " + image, "closed");
  EXPECT_EQ(closed.Log(), "");
  // A second server on the same socket is refused, and does not take it away.
  auto second =
      Shell(testing_support::PlatterProgram() + " serve --socket " + open.socket() + " " + image);
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.output, HasSubstr("another program listens on it"));
  MustRun("nbdinfo " + open.Uri());
}

}  // namespace
}  // namespace platter
