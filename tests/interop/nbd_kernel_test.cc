// The Linux kernel's NBD client, and vsock between two programs, in a small machine of their own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <map>
#include <sstream>

#include "tests/interop/guest.h"
#include "tests/interop/served.h"
#include "tests/interop/server.h"

namespace platter {
namespace {

using testing::HasSubstr;
using testing_support::FreePort;
using testing_support::Guest;
using testing_support::MustRun;
using testing_support::PlatterProgram;
using testing_support::Served;
using testing_support::TempFolder;

// What sha256sum printed, by name.
std::map<std::string, std::string> Digests(const std::string& output) {
  std::map<std::string, std::string> digests;
  std::istringstream lines(output);
  for (std::string digest, name; lines >> digest >> name;) digests[name] = digest;
  return digests;
}

class NbdKernelTest : public testing::Test {
 protected:
  std::string File(const std::string& name) const { return folder_.File(name); }
  TempFolder folder_;
};

// The baseline is all that the kernel speaks: simple replies to READ, WRITE, FLUSH, TRIM and FUA.
// nbd-client does the handshake for it, once as old ones did and once by GO with two connections.
TEST_F(NbdKernelTest, TheKernelMakesAFileSystem) {
  const std::string image = File("disk.qcow2"), raw = File("disk.raw");
  MustRun("qemu-img create -q -f qcow2 " + image + " 64M");
  const std::string port = std::to_string(FreePort());
  Guest guest(folder_);
  guest.AddNbdClient();
  guest.AddProgram("$(command -v mkfs.ext4)");
  guest.AddProgram("$(command -v e2fsck)");
  std::string output;
  nlohmann::json stats;
  {
    Served served(folder_, "--writable --stats --listen 127.0.0.1:" + port + " " + image);
    output = guest.Run("nbd ext4", "connect() { nbd-client 10.0.2.2 " + port +
                                       R"( /dev/nbd0 -N disk "$@" >/dev/null 2>&1; }
connect -no-optgo
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
dd if=/dev/urandom of=/mnt/random bs=64k count=64 2>/dev/null
mkdir /mnt/many
for i in $(seq 100); do echo $i >/mnt/many/$i; done
dd if=/dev/zero of=/mnt/gone bs=1M count=4 conv=fsync 2>/dev/null
rm /mnt/gone
fstrim /mnt
sha256sum /mnt/random
umount /mnt
e2fsck -fn /dev/nbd0 >/dev/null 2>&1
nbd-client -d /dev/nbd0 >/dev/null
connect -C 2
mount /dev/nbd0 /mnt
test $(cat /mnt/many/* | wc -l) = 100
cp /mnt/random /mnt/copy
sync
sha256sum /mnt/copy
umount /mnt
e2fsck -fn /dev/nbd0 >/dev/null 2>&1
nbd-client -d /dev/nbd0 >/dev/null
)");
    served.Stop();
    stats = nlohmann::json::parse(served.Log());
  }
  const auto& requests = stats["exports"][0]["requests"];
  for (const char* command : {"read", "write", "flush", "trim"}) EXPECT_GT(requests[command], 0);
  EXPECT_EQ(stats["exports"][0]["errors"], 0);

  MustRun("qemu-img check -q " + image);
  MustRun("qemu-img convert -f qcow2 -O raw " + image + " " + raw + " && e2fsck -fn " + raw);
  auto digests = Digests(output);
  ASSERT_EQ(digests["/mnt/random"].size(), 64u) << output;
  EXPECT_EQ(digests["/mnt/copy"], digests["/mnt/random"]);
  for (const char* file : {"random", "copy"}) {
    EXPECT_THAT(
        MustRun("debugfs -R 'cat /" + std::string(file) + "' " + raw + " 2>/dev/null | sha256sum"),
        HasSubstr(digests["/mnt/random"]));
  }
}

// This machine need not have vsock, but the kernel has a loopback for it.
TEST_F(NbdKernelTest, VsockReachesTheServer) {
  Guest guest(folder_);
  guest.AddProgram(PlatterProgram());
  guest.AddProgram("$(command -v nbdcopy)");
  guest.AddProgram("$(command -v nbdinfo)");
  const std::string output = guest.Run("vsock_loopback", R"(
cd /tmp
dd if=/dev/urandom of=source.raw bs=64k count=32 2>/dev/null
platter create -q -f qcow2 disk.qcow2 2097152
platter serve -q --writable --vsock 10900 --pid-file pid disk.qcow2 &
until test -f pid; do sleep 0.1; done
nbdinfo --size nbd+vsock://1:10900/disk
nbdcopy source.raw nbd+vsock://1:10900/disk
platter convert -q -f raw -O raw nbd+vsock://1:10900/disk ours.raw
platter convert -q -n -f raw -O raw ours.raw nbd+vsock://1:10900/disk
nbdcopy nbd+vsock://1:10900/disk theirs.raw
cmp source.raw ours.raw
cmp source.raw theirs.raw
kill $(cat pid)
wait
platter check -q disk.qcow2
)");
  EXPECT_EQ(output, "2097152\n");
}

}  // namespace
}  // namespace platter
