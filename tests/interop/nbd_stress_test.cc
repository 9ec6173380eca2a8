// `platter serve` under clients that misbehave, and under the axe: connections dropped at every
// byte, readers that do not read, kills of the server. What was acknowledged with FLUSH or FUA is
// there afterwards.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "tests/interop/served.h"

namespace platter {
namespace {

using testing::HasSubstr;
using testing_support::MustRun;
using testing_support::MustRunPython;
using testing_support::Served;
using testing_support::TempFolder;

// A sanitized server's memory says nothing.
#if defined(PLATTER_ASAN) || defined(PLATTER_TSAN)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// The raw protocol, for scripts.
constexpr char kRaw[] = R"(
import os, random, select, signal, socket, struct, subprocess, sys, time
import nbd
def option(number, data=b''):
    return b'IHAVEOPT' + struct.pack('>II', number, len(data)) + data
def request(command, cookie, offset, length, flags=0, data=b''):
    return struct.pack('>IHHQQI', 0x25609513, flags, command, cookie, offset, length) + data
hello = struct.pack('>I', 3)
go = option(7, struct.pack('>IH', 0, 0))
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    return s
def check():
    h = nbd.NBD()
    h.connect_unix(path)
    assert h.pread(4, 1 << 20) == b'\x11' * 4
    h.shutdown()
def resident():
    if sanitized:
        return 0
    return int(open('/proc/%d/statm' % pid).read().split()[1]) * 4096
)";

class NbdStressTest : public testing::Test {
 protected:
  std::string File(const std::string& name) const { return folder_.File(name); }

  std::string Image() const {
    MustRun("qemu-img create -q -f qcow2 " + File("disk.qcow2") +
            " 256M && qemu-io -f qcow2 -c 'write -P 17 1M 100M' " + File("disk.qcow2"));
    return File("disk.qcow2");
  }

  std::string Script(const Served& served, const std::string& script) {
    return MustRunPython(folder_,
                         fmt::format("path = '{}'\npid = {}\nsanitized = {}\n", served.socket(),
                                     served.pid(), kSanitized ? "True" : "False") +
                             kRaw + script);
  }

  TempFolder folder_;
};

TEST_F(NbdStressTest, ConnectionsMayDropAtEveryByte) {
  Served served(folder_, "--quiet --writable " + Image());
  Script(served, R"(
conversation = (hello + option(3) + option(8) +
    option(10, struct.pack('>III', 0, 1, 15) + b'base:allocation') + go +
    request(1, 1, 200 << 20, 700, 0, b'x' * 700) + request(0, 2, 1 << 20, 3000) +
    request(7, 3, 0, 1 << 20) + request(6, 4, 210 << 20, 1 << 20) + request(3, 5, 0, 0))
# Bytes that come after an end that matters are all alike: the middle of the payload is thinned out.
before = None
for size in range(len(conversation)):
    for hard in (False, True):
        s = connect()
        s.sendall(conversation[:size])
        if hard:
            s.shutdown(socket.SHUT_RDWR)
        s.close()
    if size == 500:
        before = resident()
check()
assert resident() < before + (16 << 20), (before, resident())
# And in pieces: the same answers as at once.
def answers(step):
    s = connect()
    s.settimeout(20)
    for at in range(0, len(conversation), step):
        s.sendall(conversation[at:at + step])
    s.sendall(request(2, 0, 0, 0))
    got = b''
    while True:
        part = s.recv(1 << 20)
        if not part:
            return got
        got += part
whole = answers(1 << 20)
assert len(whole) > 3000
assert len(answers(1)) == len(whole) == len(answers(97))
)");
}

TEST_F(NbdStressTest, ASlowReaderHoldsItsWindowAndNobodyElse) {
  Served served(folder_, "--window 8M " + Image());
  Script(served, R"(
slow = []
for i in range(4):
    s = connect()
    s.sendall(hello + go)
    # Ten times the window; none of it is read.
    s.sendall(b''.join(request(0, k, (1 << 20) * (1 + k % 90), 1 << 20) for k in range(80)))
    slow.append(s)
time.sleep(1)
start = time.time()
check()
assert time.time() - start < 2, time.time() - start
# Four windows of 8 MiB, a request each, the socket's buffers, tables.
assert resident() < 4 * (8 + 2 + 4 + 2 << 20) + (64 << 20), resident()
# The slow one gets everything in the end.
s = slow[0]
s.settimeout(20)
want = 80 * (16 + (1 << 20)) + 18 + 20 + 12 + 20
got = 0
while got < want:
    part = s.recv(1 << 20)
    assert part
    got += len(part)
assert got == want
)");
}

TEST_F(NbdStressTest, LimitsOfConnectionsAndOfTime) {
  Served served(folder_, "--max-connections 3 --handshake-limit 1 " + Image());
  Script(served, R"(
def closed(s, seconds):
    s.settimeout(seconds)
    try:
        while s.recv(4096):
            pass
        return True
    except socket.timeout:
        return False
    except ConnectionResetError:
        return True
h = nbd.NBD()
h.connect_unix(path)
# One that says nothing, and one that says little: both are let go.
silent, drip = connect(), connect()
over = connect()
assert closed(over, 5)
start = time.time()
try:
    for byte in hello + option(3) * 100:
        drip.sendall(bytes([byte]))
        time.sleep(0.2)
        assert time.time() - start < 10
except OSError:
    pass
assert time.time() - start < 5
assert closed(silent, 5) and closed(drip, 5)
# One that says much, and never which export it wants.
chatty = connect()
chatty.sendall(hello)
start = time.time()
try:
    while time.time() - start < 10:
        chatty.sendall(option(3) * 100)
        assert chatty.recv(1 << 20)
    raise Exception('still there')
except (OSError, AssertionError):
    pass
# One that has chosen an export may stay.
assert h.pread(1, 1 << 20) == b'\x11'
check()
)");
  EXPECT_THAT(served.Log(), HasSubstr("the handshake took too long"));
  EXPECT_THAT(served.Log(), HasSubstr("too many connections"));
}

// A client for whom only one descriptor is left is let go at once: it needs two. (Without the
// second nothing would tell its thread that a worker is done.)
TEST_F(NbdStressTest, ShortOfDescriptorsItServesThoseWhoAreThere) {
  Served served(folder_, Image());
  Script(served, R"(
import resource
h = nbd.NBD()
h.connect_unix(path)
taken = {int(fd) for fd in os.listdir('/proc/%d/fd' % pid)}
one_more = next(fd for fd in range(len(taken) + 1) if fd not in taken) + 1
limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
resource.prlimit(pid, resource.RLIMIT_NOFILE, (one_more, limits[1]))
s = connect()
s.settimeout(20)
assert s.recv(18) == b''
assert h.pread(1, 1 << 20) == b'\x11'
resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
check()
)");
}

// SIGKILL at a random moment of writes with FUA, or with FLUSH after each batch.
TEST_F(NbdStressTest, AKilledServerLosesNothingAcknowledged) {
  MustRun("qemu-img create -q -f qcow2 " + File("kill.qcow2") + " 256M");
  for (int round = 0; round < 6; ++round) {
    SCOPED_TRACE(round);
    Served served(folder_, "--writable " + File("kill.qcow2"));
    Script(served, fmt::format("round = {}\nledger = '{}'\n", round, File("ledger")) + R"(
random.seed(round)
h = nbd.NBD()
h.connect_unix(path)
sure = {}
if os.path.exists(ledger):
    sure = eval(open(ledger).read())
for at, value in sure.items():
    assert h.pread(4096, at) == bytes([value]) * 4096, (at, value)
maybe = set()
deadline = time.time() + 0.2 + random.random() / 2
killer = subprocess.Popen(['sh', '-c', 'sleep %f; kill -9 %d' % (deadline - time.time(), pid)])
fua = round % 2 == 0
batch = {}
try:
    while True:
        at, value = random.randrange(65536) * 4096, random.randrange(1, 256)
        if at in batch or at in maybe:
            continue
        maybe.add(at)
        old = sure.pop(at, None)
        h.pwrite(bytes([value]) * 4096, at, nbd.CMD_FLAG_FUA if fua else 0)
        batch[at] = value
        if fua or len(batch) == 50:
            if not fua:
                h.flush()
            sure.update(batch)
            maybe -= set(batch)
            batch = {}
except nbd.Error:
    pass
killer.wait()
assert len(sure) > 10
open(ledger, 'w').write(repr(sure))
)");
    served.Kill();
    // Leaks are allowed, corruption is not.
    int code = testing_support::Shell("qemu-img check -q " + File("kill.qcow2")).exit_code;
    EXPECT_TRUE(code == 0 || code == 3) << code;
  }
}

// Told to end while clients write: each write that was acknowledged is there, without a FLUSH.
TEST_F(NbdStressTest, EndingInOrderKeepsWhatWasAcknowledged) {
  MustRun("qemu-img create -q -f qcow2 " + File("end.qcow2") + " 256M");
  Served served(folder_, "--writable " + File("end.qcow2"));
  Script(served, "ledger = '" + File("ledger") + "'\n" + R"(
random.seed(3)
h = nbd.NBD()
h.connect_unix(path)
subprocess.Popen(['sh', '-c', 'sleep 0.5; kill %d' % pid])
positions, flying, sure = list(range(65536)), {}, {}
random.shuffle(positions)
def content(at):
    return bytes([1 + at // 4096 % 255]) * 4096
try:
    while True:
        while len(flying) < 16 and positions:
            at = positions.pop() * 4096
            buffer = nbd.Buffer.from_bytearray(bytearray(content(at)))
            flying[h.aio_pwrite(buffer, at)] = at
        h.poll(100)
        for cookie in list(flying):
            if h.aio_command_completed(cookie):
                at = flying.pop(cookie)
                sure[at] = content(at)[0]
        if not flying and not positions:
            h.pread(1, 0)
except nbd.Error:
    pass
assert len(sure) > 10
open(ledger, 'w').write(repr(sure))
)");
  served.Stop();
  MustRun("qemu-img check -q " + File("end.qcow2"));
  Served again(folder_, File("end.qcow2"), "again");
  Script(again, "ledger = '" + File("ledger") + "'\n" + R"(
h = nbd.NBD()
h.connect_unix(path)
for at, value in eval(open(ledger).read()).items():
    assert h.pread(4096, at) == bytes([value]) * 4096, (at, value)
)");
}

}  // namespace
}  // namespace platter
