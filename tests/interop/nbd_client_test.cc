// Our NBD client against the servers that there are: nbdkit, qemu-nbd and nbd-server.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "nbd/client/client_store.h"
#include "tests/interop/qemu.h"
#include "tests/interop/served.h"
#include "tests/interop/server.h"
#include "tools/platter_testing.h"

namespace platter::nbd {
namespace {

using testing_support::FreePort;
using testing_support::MustRun;
using testing_support::Server;
using namespace std::chrono_literals;

class NbdClientTest : public PlatterTest {
 protected:
  NbdClientTest() { signal(SIGPIPE, SIG_IGN); }  // as main() does

  std::string Socket() { return File("socket"); }
  std::string Url(const std::string& name = "") {
    return "nbd+unix:///" + name + "?socket=" + Socket();
  }

  std::unique_ptr<Server> Start(const std::string& command) {
    return std::make_unique<Server>(command, Server::Ready{.socket = Socket()});
  }
  std::unique_ptr<Server> StartNbdkit(const std::string& arguments) {
    return Start("nbdkit -f -U " + Socket() + " " + arguments);
  }

  std::unique_ptr<ClientStore> Open(const ClientOptions& options = {}) {
    auto store = ClientStore::Open(*ParseUri(Url()), options);
    EXPECT_TRUE(store) << store.error().text();
    return store ? std::move(*store) : nullptr;
  }

  void ExpectFails(const std::string& url, const std::string& words) {
    auto ran = Platter({"info", "-f", "raw", url});
    EXPECT_EQ(ran.code, 1) << url;
    EXPECT_NE(ran.err.find(words), std::string::npos) << ran.err;
  }
};

// --- The store ----------------------------------------------------------------------------------

// Random operations by several threads, each in a part of its own, against an array.
void RunModel(Store& store, uint64_t size, int threads, int rounds) {
  std::vector<std::jthread> workers;
  for (int thread = 0; thread < threads; ++thread) {
    workers.emplace_back([&, thread] {
      const uint64_t part = size / threads, base = part * thread;
      std::mt19937_64 random(thread + 1);
      std::vector<std::byte> model(part);
      for (int i = 0; i < rounds; ++i) {
        uint64_t at = random() % part, most = i % 8 == 0 ? part : 10000;
        uint64_t length = random() % std::min(most, part - at) + 1;
        std::span<std::byte> mine = std::span(model).subspan(at, length);
        Result<> done;
        switch (random() % 4) {
          case 0:
            std::ranges::generate(mine, [&] { return static_cast<std::byte>(random()); });
            done = store.Write(base + at, ConstBytes(mine));
            break;
          case 1:
            std::ranges::fill(mine, std::byte{0});
            done = store.Zero({base + at, length}, random() % 2 == 0);
            break;
          default: {
            std::vector<std::byte> got(length);
            done = store.Read(base + at, Bytes(got));
            if (done) {
              ASSERT_TRUE(std::ranges::equal(got, mine)) << base + at << " " << length;
            }
          }
        }
        ASSERT_TRUE(done) << done.error().text();
      }
      EXPECT_TRUE(store.Sync());
    });
  }
}

TEST_F(NbdClientTest, ModelOverSeveralConnections) {
  auto server = StartNbdkit("memory 16M");
  auto store = Open({.writable = true});
  ASSERT_TRUE(store);
  EXPECT_EQ(*store->Size(), 16 * kMiB);
  RunModel(*store, 16 * kMiB, 8, 150);
  EXPECT_GT(store->connections(), 1u);
}

TEST_F(NbdClientTest, ModelWithLargeBlocks) {
  auto server = StartNbdkit(
      "--filter=blocksize-policy memory 4M blocksize-minimum=4096 blocksize-error-policy=error"
      " blocksize-maximum=64k blocksize-preferred=16k");
  auto store = Open({.writable = true});
  ASSERT_TRUE(store);
  EXPECT_EQ(store->caps().align, 4096u);
  EXPECT_EQ(store->caps().preferred, 16384u);
  // Parts that share blocks.
  RunModel(*store, 4 * kMiB - 1000, 3, 150);
}

TEST_F(NbdClientTest, ModelWithoutTheNewerCommands) {
  auto server = StartNbdkit(
      "--no-sr --filter=nozero --filter=multi-conn memory 4M zeromode=none"
      " multi-conn-mode=disable");
  auto store = Open({.writable = true});
  ASSERT_TRUE(store);
  EXPECT_FALSE(store->agreed().structured);
  RunModel(*store, 4 * kMiB, 4, 100);
  EXPECT_EQ(store->connections(), 1u);
}

// Reading only: nbdkit 1.32 offers FLUSH and WRITE_ZEROES in the old style and then knows neither.
TEST_F(NbdClientTest, OldestGreeting) {
  const std::string raw = RawSource();
  auto server = StartNbdkit("-o -r file " + raw);
  EXPECT_EQ(Platter({"compare", "-f", "raw", "-F", "raw", Url(), raw}).code, 0);
}

TEST_F(NbdClientTest, PastTheEndIsAnError) {
  auto server = StartNbdkit("memory 1M");
  auto store = Open({.writable = true});
  ASSERT_TRUE(store);
  std::byte two[2] = {};
  EXPECT_EQ(store->Read(kMiB - 1, Bytes(two)).error().code(), Code::kCorrupt);
  EXPECT_EQ(store->Write(kMiB - 1, ConstBytes(two)).error().code(), Code::kNoSpace);
  EXPECT_EQ(store->Zero({kMiB, 1}, true).error().code(), Code::kNoSpace);
  EXPECT_EQ(store->Resize(2 * kMiB).error().code(), Code::kUnsupported);
  EXPECT_FALSE(store->FindRun(kMiB));
}

TEST_F(NbdClientTest, RunsAreWhatTheServerSays) {
  auto server = StartNbdkit("data '@65536 1 @1048576 1*65536 @2097152 0' size=8G");
  const std::string ours = Platter({"map", "--output", "json", "-f", "raw", Url()}).out;
  const std::string theirs =
      MustRun("qemu-img map --output=json --image-opts driver=nbd,server.type=unix,server.path=" +
              Socket());
  auto data_runs = [](const std::string& text) {
    std::vector<std::pair<uint64_t, uint64_t>> runs;
    for (const auto& run : nlohmann::json::parse(text)) {
      if (!run["zero"].get<bool>()) runs.emplace_back(run["start"], run["length"]);
    }
    return runs;
  };
  EXPECT_EQ(data_runs(ours), data_runs(theirs)) << ours << theirs;
  EXPECT_EQ(data_runs(ours).size(), 2u) << ours;
}

TEST_F(NbdClientTest, RunsFollowWrites) {
  auto server = StartNbdkit("memory 8M");
  auto store = Open({.writable = true});
  ASSERT_TRUE(store);
  EXPECT_FALSE(store->FindRun(0)->data);
  std::byte one[1] = {std::byte{1}};
  ASSERT_TRUE(store->Write(4 * kMiB, ConstBytes(one)));
  auto hole = store->FindRun(0);
  EXPECT_EQ(hole->length, 4 * kMiB);
  EXPECT_TRUE(store->FindRun(4 * kMiB)->data);
  ASSERT_TRUE(store->Zero({4 * kMiB, kMiB}, true));
  EXPECT_FALSE(store->FindRun(4 * kMiB)->data);
}

TEST_F(NbdClientTest, RunsFollowWritesOfOthers) {
  auto server = StartNbdkit("memory 1M");
  auto reader = Open(), writer = Open({.writable = true});
  ASSERT_TRUE(reader && writer);
  auto run = reader->FindRun(0);
  ASSERT_TRUE(run);
  EXPECT_FALSE(run->data);
  const std::byte bytes[512] = {std::byte{1}};
  ASSERT_TRUE(writer->Write(0, ConstBytes(bytes)));
  std::this_thread::sleep_for(1100ms);  // so long it is believed
  run = reader->FindRun(0);
  ASSERT_TRUE(run);
  EXPECT_TRUE(run->data);
}

// nbdkit's log says when each request came and when it was answered.
TEST_F(NbdClientTest, ManyRequestsAreUnderWayAtOnce) {
  auto server = StartNbdkit("-t 32 --filter=log --filter=delay memory 1M rdelay=100ms logfile=" +
                            File("log"));
  auto store = Open({.connections = 1});
  ASSERT_TRUE(store);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 16; ++i) {
      threads.emplace_back([&] {
        std::byte bytes[512];
        EXPECT_TRUE(store->Read(0, Bytes(bytes)));
      });
    }
  }
  store.reset();
  server->Stop();
  std::ifstream log(File("log"));
  int under_way = 0, most = 0, all = 0;
  for (std::string line; std::getline(log, line);) {
    if (line.find(" Read ") != line.npos) most = std::max(most, ++under_way), ++all;
    if (line.find(" ...Read ") != line.npos) --under_way;
  }
  EXPECT_EQ(all, 16);
  EXPECT_GT(most, 1);
}

// Each 8 bytes of the plugin "pattern" are their own offset.
TEST_F(NbdClientTest, EveryByteComesFromItsPlace) {
  constexpr uint64_t kSize = 5 * kGiB;
  auto server = StartNbdkit("-r pattern 5G");
  auto store = Open();
  ASSERT_TRUE(store);
  std::vector<std::jthread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(seed);
      for (int i = 0; i < 100; ++i) {
        const uint64_t at = random() % (kSize - kMiB),
                       length = random() % (i % 10 ? 9000 : kMiB) + 1;
        std::vector<std::byte> bytes(length);
        ASSERT_TRUE(store->Read(at, Bytes(bytes)));
        for (uint64_t k = 0; k < length; ++k) {
          const uint64_t place = at + k, shift = 56 - 8 * (place % 8);
          ASSERT_EQ(bytes[k], static_cast<std::byte>((place & ~uint64_t{7}) >> shift)) << place;
        }
      }
    });
  }
}

// The plugin "sparse-random" makes the same disk again from the same seed, and refuses writes of
// anything else. Both ways there is only what is there: data where extents say so.
TEST_F(NbdClientTest, SparseDisksAreCopiedExactly) {
  const std::string plugin = " sparse-random 64M seed=11 percent=10 runlength=51200";
  auto source = Start("nbdkit -f -r --filter=delay -U " + Socket() + plugin +
                      " rdelay=2ms delay-extents=20ms");
  const std::string target = File("target");
  Server checker("nbdkit -f -U " + target + plugin, {.socket = target});
  const std::string target_url = "nbd+unix:///?socket=" + target;
  auto ran = Platter({"convert", "-n", "-f", "raw", "-O", "raw", Url(), target_url});
  EXPECT_EQ(ran.code, 0) << ran.err;
  ran = Platter({"convert", "-f", "raw", "-O", "qcow2", Url(), File("out.qcow2")});
  EXPECT_EQ(ran.code, 0) << ran.err;
  MustRun("nbdcopy 'nbd+unix:///?socket=" + Socket() + "' " + File("theirs.raw") +
          " && qemu-img compare -f raw -F qcow2 " + File("theirs.raw") + " " + File("out.qcow2"));
  EXPECT_LT(std::filesystem::file_size(File("out.qcow2")), 20u << 20);
  // The checker does check.
  std::ofstream(File("other.raw")) << std::string(kMiB, 'x');
  ran = Platter({"convert", "-n", "-f", "raw", "-O", "raw", File("other.raw"), target_url});
  EXPECT_EQ(ran.code, 1);
}

TEST_F(NbdClientTest, ErrorsOfTheServerAreOurs) {
  auto server = StartNbdkit(
      "--filter=error memory 1M error=ENOSPC error-pwrite-rate=100%"
      " error-pread=EIO error-pread-rate=100%");
  auto store = Open({.writable = true});
  ASSERT_TRUE(store);
  std::byte bytes[512] = {};
  auto read = store->Read(0, Bytes(bytes));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().errno_value(), EIO);
  EXPECT_NE(read.error().text().find("cannot read 512 bytes at 0"), std::string::npos);
  EXPECT_EQ(store->Write(0, ConstBytes(bytes)).error().code(), Code::kNoSpace);
  EXPECT_TRUE(store->Sync());  // the connection goes on
}

// Now and then a request fails: whoever sent that one hears of it, with whatever the server said,
// and everything else is as it should be.
TEST_F(NbdClientTest, ErrorsHitTheRequestThatFailed) {
  auto server = StartNbdkit(
      "--filter=error memory 4M error=ENOMEM error-pread-rate=30% error-pwrite-rate=30%"
      " error-zero-rate=30% error-extents-rate=100%");
  auto store = Open({.writable = true});
  ASSERT_TRUE(store);
  std::mt19937_64 random(1);
  std::vector<std::byte> model(4 * kMiB), got(64 * kKiB);
  int failed = 0, done = 0;
  for (int i = 0; i < 300; ++i) {
    const uint64_t at = random() % (model.size() - got.size());
    const auto mine = std::span(model).subspan(at, got.size());
    const auto value = static_cast<std::byte>(random());
    Result<> result;
    if (i % 3 == 0) {
      result = store->Read(at, Bytes(got));
      if (result) {
        ASSERT_TRUE(std::ranges::equal(got, mine)) << at;
      }
    } else if (i % 3 == 1) {
      std::ranges::fill(got, value);
      result = store->Write(at, ConstBytes(got));
      if (result) std::ranges::fill(mine, value);
    } else {
      result = store->Zero({at, got.size()}, true);
      if (result) std::ranges::fill(mine, std::byte{0});
    }
    if (!result) {
      EXPECT_EQ(result.error().errno_value(), ENOMEM);
    }
    ++(result ? done : failed);
  }
  EXPECT_GT(failed, 20);
  EXPECT_GT(done, 100);
  // Where the server cannot tell, it is data.
  auto run = store->FindRun(0);
  ASSERT_TRUE(run) << run.error().text();
  EXPECT_TRUE(run->data);
}

// --- Commands -----------------------------------------------------------------------------------

TEST_F(NbdClientTest, ConvertsFromEveryServer) {
  const std::string raw = RawSource(), out = File("out.qcow2");
  MustRun("qemu-img convert -q -f raw -O qcow2 " + raw + " " + File("disk.qcow2"));
  std::ofstream(File("nbd.conf")) << "[generic]\nlistenaddr = 127.0.0.1\nport = " << FreePort()
                                  << "\nunixsock = " << Socket() << "\n[disk]\nexportname = " << raw
                                  << "\n";
  struct Case {
    std::string command, url;
  };
  for (const Case& c :
       {Case{"qemu-nbd -t -r -f qcow2 -k " + Socket() + " " + File("disk.qcow2"), Url()},
        Case{"qemu-nbd -t -r -x name -f raw -k " + Socket() + " " + raw, Url("name")},
        Case{"nbdkit -f -U " + Socket() + " file " + raw, Url()},
        Case{"nbdkit -f --no-sr -U " + Socket() + " file " + raw, Url()},
        // It goes into the background by itself.
        Case{"sh -c 'nbd-server -C " + File("nbd.conf") + " -p " + File("nbd.pid") +
                 "; trap \"kill \\$(cat " + File("nbd.pid") + ") \\$!\" TERM; sleep 30 & wait'",
             Url("disk")}}) {
    unlink(Socket().c_str());
    auto server = Start(c.command);
    auto ran = Platter({"convert", "--force", "-f", "raw", "-O", "qcow2", c.url, out});
    ASSERT_EQ(ran.code, 0) << c.command << ": " << ran.err;
    MustRun("qemu-img compare -f raw -F qcow2 " + raw + " " + out);
    EXPECT_EQ(Platter({"compare", "-f", "raw", "-F", "raw", c.url, raw}).code, 0) << c.command;
  }
}

TEST_F(NbdClientTest, FormatsCanBeInsideAnExport) {
  const std::string raw = RawSource();
  MustRun("qemu-img convert -q -f raw -O vmdk " + raw + " " + File("disk.vmdk"));
  auto server = StartNbdkit("-r file " + File("disk.vmdk"));
  auto info = Platter({"info", Url()});
  EXPECT_NE(info.out.find("vmdk"), std::string::npos) << info.out << info.err;
  EXPECT_EQ(Platter({"compare", "-F", "raw", Url(), raw}).code, 0);
}

TEST_F(NbdClientTest, ConvertsInto) {
  const std::string raw = RawSource();
  MustRun("qemu-img create -q -f qcow2 " + File("t.qcow2") + " 8M");
  {
    auto server = Start("qemu-nbd -t -f qcow2 --discard=unmap --detect-zeroes=unmap -k " +
                        Socket() + " " + File("t.qcow2"));
    auto ran = Platter({"convert", "-n", "-f", "raw", "-O", "raw", raw, Url()});
    ASSERT_EQ(ran.code, 0) << ran.err;
    server->Stop();
  }
  MustRun("qemu-img compare -f raw -F qcow2 " + raw + " " + File("t.qcow2"));

  // A format inside of the export; it was there, so it needs to be said.
  MustRun("truncate -s 20M " + File("t.raw"));
  {
    unlink(Socket().c_str());
    auto server = StartNbdkit("file " + File("t.raw"));
    EXPECT_EQ(Platter({"convert", "-f", "raw", "-O", "qcow2", raw, Url()}).code, 1);
    auto ran = Platter({"convert", "--force", "-f", "raw", "-O", "qcow2", raw, Url()});
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(Platter({"compare", "-f", "qcow2", "-F", "raw", Url(), raw}).code, 0);
    server->Stop();
  }
  MustRun("qemu-img compare -f raw -F qcow2 " + raw + " " + File("t.raw"));
}

TEST_F(NbdClientTest, ReadOnlyExportsAreNotWritten) {
  auto server = StartNbdkit("-r memory 8M");
  auto ran = Platter({"convert", "-n", "-f", "raw", "-O", "raw", RawSource(), Url()});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("for reading only"), std::string::npos) << ran.err;
}

TEST_F(NbdClientTest, ParentsCanBeExports) {
  const std::string raw = RawSource();
  auto server = StartNbdkit("-r file " + raw);
  auto made = Platter({"create", "-f", "qcow2", "-b", Url(), "-F", "raw", File("o.qcow2")});
  ASSERT_EQ(made.code, 0) << made.err;
  auto refused = Platter({"compare", "-F", "raw", File("o.qcow2"), raw});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("--allow-external"), std::string::npos) << refused.err;
  EXPECT_EQ(Platter({"compare", "--allow-external", "-F", "raw", File("o.qcow2"), raw}).code, 0);
}

TEST_F(NbdClientTest, WhatIsNotThereSaysSo) {
  ExpectFails(Url(), "No such file");
  ExpectFails("nbd://127.0.0.1:1/", "refused");
  ExpectFails("nbd://127.0.0.1:1/?x=y", "not understood");
  auto server =
      StartNbdkit("--filter=exportname memory 1M exportname=there exportname-strict=true");
  ExpectFails(Url("elsewhere"), "no such export");
}

// --- Lost connections ---------------------------------------------------------------------------

TEST_F(NbdClientTest, WithoutReconnectALossIsAnError) {
  auto server = StartNbdkit("memory 1M");
  auto store = Open({.writable = true});
  ASSERT_TRUE(store);
  server->Kill();
  std::byte bytes[512] = {};
  auto read = store->Read(0, Bytes(bytes));
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().text().find("connection was lost"), std::string::npos);
  EXPECT_FALSE(store->Sync());
}

// qemu-nbd keeps tables of a qcow2 in memory until they are flushed: killed, it forgets writes that
// it has answered.
TEST_F(NbdClientTest, ServersMayDieAsOftenAsTheyLike) {
  MustRun("qemu-img create -q -f qcow2 " + File("t.qcow2") + " 64M && head -c 64M /dev/urandom >" +
          File("big.raw"));
  const std::string command =
      "qemu-nbd -t -e 4 --cache=writeback -f qcow2 -k " + Socket() + " " + File("t.qcow2");
  auto server = Start(command);
  Ran ran{};
  std::atomic<bool> done{false};
  std::jthread converter([&] {
    ran = Platter({"convert", "-n", "--reconnect", "20", "--rate-limit", "80M", "-f", "raw", "-O",
                   "raw", File("big.raw"), Url()});
    done = true;
  });
  // Here and not there: a server lives no longer than the thread that starts it.
  for (int i = 0; i < 4 && !done; ++i) {
    std::this_thread::sleep_for(120ms);
    server->Kill();
    std::this_thread::sleep_for(50ms);
    unlink(Socket().c_str());
    server = Start(command);
  }
  converter.join();
  ASSERT_EQ(ran.code, 0) << ran.err;
  server->Stop();
  MustRun("qemu-img compare -f raw -F qcow2 " + File("big.raw") + " " + File("t.qcow2"));
}

TEST_F(NbdClientTest, AnotherExportIsNotTakenForTheOldOne) {
  auto server = StartNbdkit("memory 1M");
  auto store = Open({.reconnect_seconds = 1});
  ASSERT_TRUE(store);
  server->Kill();
  unlink(Socket().c_str());
  server = StartNbdkit("memory 2M");
  std::byte bytes[512];
  auto read = store->Read(0, Bytes(bytes));
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().text().find("another export"), std::string::npos) << read.error().text();
}

// --- Our own server, which offers extended headers ----------------------------------------------

TEST_F(NbdClientTest, LongEffectsAndStatus) {
  constexpr uint64_t kSize = 5 * kTiB;
  MustRun("qemu-img create -q -f qcow2 " + File("t.qcow2") + " 5T");
  testing_support::Served served(folder_, "--writable " + File("t.qcow2"));
  auto uri = ParseUri("nbd+unix:///t?socket=" + served.socket());
  auto store = ClientStore::Open(*uri, {.writable = true});
  ASSERT_TRUE(store) << store.error().text();
  EXPECT_TRUE((*store)->agreed().extended);
  std::byte one[1] = {std::byte{1}};
  ASSERT_TRUE((*store)->Write(4 * kTiB, ConstBytes(one)));
  auto run = (*store)->FindRun(0);
  ASSERT_TRUE(run) << run.error().text();
  EXPECT_FALSE(run->data);
  EXPECT_GT(run->length, 4 * kGiB);
  EXPECT_TRUE((*store)->Zero({0, kSize}, true));
  run = (*store)->FindRun(4 * kTiB);
  ASSERT_TRUE(run);
  EXPECT_FALSE(run->data);
  RunModel(**store, 16 * kMiB, 8, 100);
}

// A server that takes no further request before its replies are read, while some of us are sending
// and others wait.
TEST_F(NbdClientTest, MoreIsUnderWayThanSocketsHold) {
  constexpr uint64_t kPart = 2 * kMiB;
  MustRun("truncate -s 32M " + File("t.raw"));
  testing_support::Served served(folder_, "--writable --window 64K -f raw " + File("t.raw"));
  auto uri = ParseUri("nbd+unix:///t?socket=" + served.socket());
  auto store = ClientStore::Open(*uri, {.writable = true, .connections = 1});
  ASSERT_TRUE(store) << store.error().text();
  std::vector<std::jthread> threads;
  for (uint64_t i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] {
      std::vector<std::byte> own(kPart, std::byte(i)), read(kPart);
      for (int round = 0; round < 10; ++round) {
        EXPECT_TRUE((*store)->Write(i * kPart, ConstBytes(own)));
        EXPECT_TRUE((*store)->Read(i * kPart, Bytes(read)));
        EXPECT_EQ(read, own);
      }
    });
  }
}

TEST_F(NbdClientTest, OurServerMayDieToo) {
  MustRun("qemu-img create -q -f qcow2 " + File("t.qcow2") + " 64M && head -c 64M /dev/urandom >" +
          File("big.raw"));
  const std::string arguments = "--writable " + File("t.qcow2");
  auto served = std::make_unique<testing_support::Served>(folder_, arguments);
  const std::string url = "nbd+unix:///t?socket=" + served->socket();
  Ran ran{};
  std::atomic<bool> done{false};
  std::jthread converter([&] {
    ran = Platter({"convert", "-n", "--reconnect", "20", "--rate-limit", "80M", "-f", "raw", "-O",
                   "raw", File("big.raw"), url});
    done = true;
  });
  for (int i = 0; i < 3 && !done; ++i) {
    std::this_thread::sleep_for(150ms);
    served->Kill();
    unlink(served->socket().c_str());
    served = std::make_unique<testing_support::Served>(folder_, arguments);
  }
  converter.join();
  ASSERT_EQ(ran.code, 0) << ran.err;
  served->Stop();
  MustRun("qemu-img compare -f raw -F qcow2 " + File("big.raw") + " " + File("t.qcow2"));
}

// A server that hangs and dies, and one that took its place before that was noticed: the new one
// has to get what the old one did not flush before anything is asked of it.
TEST_F(NbdClientTest, AnotherServersConnectionIsNotAddedToTheOldOnes) {
  MustRun("truncate -s 8M " + File("old.raw") + " " + File("new.raw"));
  const std::string arguments = "--export-name x --writable -f raw ";
  testing_support::Served old_server(folder_, arguments + File("old.raw"), "old");
  auto uri = ParseUri("nbd+unix:///x?socket=" + old_server.socket());
  auto opened = ClientStore::Open(*uri, {.writable = true, .reconnect_seconds = 20});
  ASSERT_TRUE(opened) << opened.error().text();
  ClientStore& store = **opened;
  const std::vector<std::byte> written(4096, std::byte{'w'});
  ASSERT_TRUE(store.Write(0, ConstBytes(written)));
  kill(old_server.pid(), SIGSTOP);
  testing_support::Served new_server(folder_, arguments + File("new.raw"), "new");
  ASSERT_EQ(rename(new_server.socket().c_str(), old_server.socket().c_str()), 0);

  // The third finds two under way, and asks for a further connection. Then flushes go in turns over
  // those that there are.
  std::vector<std::jthread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      std::byte block[512];
      auto done = i < 3 ? store.Read(kMiB * static_cast<uint64_t>(i), Bytes(block)) : store.Sync();
      EXPECT_TRUE(done) << done.error().text();
    });
    std::this_thread::sleep_for(100ms);
  }
  old_server.Kill();
  threads.clear();
  std::vector<std::byte> read(written.size());
  ASSERT_TRUE(store.Read(0, Bytes(read)));
  EXPECT_EQ(read, written);
}

// --- TLS ----------------------------------------------------------------------------------------

class NbdTlsTest : public NbdClientTest {
 protected:
  // Folders for servers and clients, with a certificate for `host` that is good for `days`.
  void MakeCertificates(const std::string& folder, const std::string& host, int days) {
    MustRun("mkdir " + File(folder) + " && cd " + File(folder) +
            " && openssl req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca-cert.pem "
            "-days 2 -subj /CN=ca -addext keyUsage=keyCertSign 2>/dev/null"
            " && for who in server client; do openssl req -newkey rsa:2048 -nodes -keyout "
            "$who-key.pem -out $who.csr -subj /CN=$who 2>/dev/null && printf 'subjectAltName=DNS:" +
            host +
            "' >ext && openssl x509 -req -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem "
            "-CAcreateserial -days " +
            std::to_string(days) + " -extfile ext -out $who-cert.pem 2>/dev/null || exit 1; done");
  }
  std::unique_ptr<Server> StartTls(const std::string& arguments) {
    port_ = FreePort();
    return std::make_unique<Server>(
        "nbdkit -f -i 127.0.0.1 -p " + std::to_string(port_) + " " + arguments + " memory 1M",
        Server::Ready{.tcp = port_});
  }
  std::string TlsUrl(const std::string& query, const std::string& host = "localhost") {
    return "nbds://" + host + ":" + std::to_string(port_) + "/?" + query;
  }
  void ExpectWorks(const std::string& url) {
    auto ran = Platter({"hash", "-f", "raw", url});
    EXPECT_EQ(ran.code, 0) << ran.err;
  }
  uint16_t port_ = 0;
};

TEST_F(NbdTlsTest, Certificates) {
  MakeCertificates("good", "localhost", 2);
  MakeCertificates("other", "localhost", 2);
  auto server = StartTls("--tls=require --tls-verify-peer --tls-certificates=" + File("good"));
  ExpectWorks(TlsUrl("tls-certificates=" + File("good")));
  ExpectWorks(TlsUrl("tls-certificates=" + File("good") + "&tls-hostname=localhost", "127.0.0.1"));
  ExpectFails(TlsUrl("tls-certificates=" + File("good"), "127.0.0.1"), "not accepted");
  ExpectFails(TlsUrl("tls-certificates=" + File("good") + "&tls-hostname=elsewhere"),
              "not accepted");
  ExpectFails(TlsUrl("tls-certificates=" + File("other")), "not accepted");
  ExpectFails("nbds://localhost:" + std::to_string(port_) + "/", "not accepted");
  ExpectFails("nbd://localhost:" + std::to_string(port_) + "/", "nbds://");
  // The server wants to know us.
  MustRun("mkdir " + File("nobody") + " && cp " + File("good/ca-cert.pem") + " " + File("nobody"));
  EXPECT_EQ(Platter({"hash", "-f", "raw", TlsUrl("tls-certificates=" + File("nobody"))}).code, 1);
}

TEST_F(NbdTlsTest, ExpiredCertificates) {
  MakeCertificates("good", "localhost", 0);
  auto server = StartTls("--tls=require --tls-certificates=" + File("good"));
  std::this_thread::sleep_for(1100ms);
  ExpectFails(TlsUrl("tls-certificates=" + File("good")), "expired");
}

TEST_F(NbdTlsTest, PreSharedKeys) {
  std::ofstream(File("psk")) << "me:00112233445566778899aabbccddeeff\n";
  std::ofstream(File("bad")) << "me:ff112233445566778899aabbccddeeff\n";
  std::ofstream(File("you")) << "you:00112233445566778899aabbccddeeff\n";
  auto server = StartTls("--tls=require --tls-psk=" + File("psk"));
  auto with = [&](const std::string& file, const std::string& user) {
    return TlsUrl("tls-psk-file=" + File(file) + "&tls-username=" + user);
  };
  ExpectWorks(with("psk", "me"));
  ExpectFails(with("bad", "me"), "TLS");
  ExpectFails(with("you", "you"), "TLS");
  ExpectFails(with("psk", "you"), "no key of 'you'");
}

TEST_F(NbdTlsTest, IsNeverGivenUp) {
  auto server = StartTls("");
  ExpectFails(TlsUrl("tls-certificates=/nonexistent"), "TLS");
  server = StartTls("-o");
  ExpectFails("nbds://localhost:" + std::to_string(port_) + "/", "TLS");
}

}  // namespace
}  // namespace platter::nbd
