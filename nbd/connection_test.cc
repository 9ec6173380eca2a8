// Connections over socket pairs, without a server: many requests in flight, several clients of one
// disk, ends of every kind. Under TSan, too.
#include "nbd/connection.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <random>
#include <thread>

#include "io/testing/wrapper_layer.h"
#include "nbd/session_testing.h"

namespace platter::nbd {
namespace {

constexpr uint64_t kSize = 4 * kMiB;
constexpr uint64_t kBlock = 4096;

// Nothing is in memory, so that everything but the only request goes to the workers.
class ForgetfulLayer final : public WrapperLayer {
 public:
  explicit ForgetfulLayer(Layer& inner) : WrapperLayer(inner) {}
  size_t TryMap(Range, std::span<Extent>) override { return 0; }
};

// Whoever reads the first block waits until Release.
class StuckLayer final : public WrapperLayer {
 public:
  explicit StuckLayer(Layer& inner) : WrapperLayer(inner) {}
  size_t TryMap(Range, std::span<Extent>) override { return 0; }
  Result<size_t> Map(Range want, std::span<Extent> out) override {
    if (want.offset < kBlock) released_.wait(false);
    return base_.Map(want, out);
  }
  void Release() {
    released_ = true;
    released_.notify_all();
  }

 private:
  std::atomic<bool> released_{false};
};

// The client's end: blocking, with the handshake done.
class Client {
 public:
  explicit Client(int fd) : fd_(fd) {
    const timeval patience{.tv_sec = 60, .tv_usec = 0};  // then a test fails instead of hanging
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }

  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      ssize_t count = send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
  }
  // Fewer bytes at the end of the stream.
  std::string Receive(size_t size) {
    std::string bytes(size, '\0');
    size_t have = 0;
    while (have < size) {
      ssize_t count = recv(fd_.get(), bytes.data() + have, size - have, 0);
      if (count <= 0) break;
      have += static_cast<size_t>(count);
    }
    bytes.resize(have);
    return bytes;
  }
  void Handshake() {
    Receive(sizeof(Greeting));
    Send(Raw(ClientFlags{kFixedNewstyle | kNoZeroes}) + OptionBytes(kOptExportName, ""));
    EXPECT_EQ(Receive(sizeof(ExportNameReply)).size(), sizeof(ExportNameReply));
  }
  void Close() { fd_ = Fd(); }

 private:
  Fd fd_;
};

class ConnectionTest : public testing::TestWithParam<bool> {
 protected:
  ConnectionTest() : disk_(MemoryDisk("qcow2", kSize)), workers_(4) {
    std::shared_ptr<Layer> layer = disk_;
    if (GetParam()) layer = std::make_shared<ForgetfulLayer>(*disk_);
    exports_.Add("disk", layer);
  }

  // A client, and the thread that serves it.
  struct Pair {
    std::unique_ptr<Client> client;
    std::unique_ptr<Connection> connection;
    std::jthread thread;
  };
  Pair Connect() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    Pair pair;
    pair.client = std::make_unique<Client>(ends[0]);
    pair.connection =
        std::make_unique<Connection>(Fd(ends[1]), "test", exports_, workers_, options_);
    pair.thread = std::jthread([connection = pair.connection.get()] { connection->Run(); });
    pair.client->Handshake();
    return pair;
  }

  std::shared_ptr<Disk> disk_;
  TestExports exports_;
  Workers workers_;
  ConnectionOptions options_;
};

// Writes and reads of blocks that are this client's own, up to 16 in flight; what is read is what
// was written last.
void Exercise(Client& client, uint64_t first, uint64_t blocks, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> model(blocks, 0);
  for (int round = 0; round < 60; ++round) {
    std::vector<std::pair<uint64_t, bool>> asked;  // block, read
    std::vector<bool> used(blocks);
    std::string requests;
    while (asked.size() < 16) {
      const uint64_t block = random() % blocks;
      if (used[block]) continue;
      used[block] = true;
      const bool read = random() % 2 == 0;
      const uint64_t at = (first + block) * kBlock;
      if (read) {
        requests += RequestBytes(kCmdRead, asked.size(), at, kBlock);
      } else {
        model[block] = static_cast<uint8_t>(random());
        requests += RequestBytes(kCmdWrite, asked.size(), at, kBlock, random() % 8 ? 0 : kFlagFua,
                                 std::string(kBlock, static_cast<char>(model[block])));
      }
      asked.emplace_back(block, read);
    }
    client.Send(requests);
    for (size_t i = 0; i < asked.size(); ++i) {
      Sent sent(client.Receive(sizeof(SimpleReply)));
      auto reply = sent.Take<SimpleReply>();
      ASSERT_EQ(reply.magic, kSimpleReplyMagic);
      ASSERT_EQ(reply.error, 0u);
      auto [block, read] = asked.at(reply.cookie);
      if (!read) continue;
      ASSERT_EQ(client.Receive(kBlock), std::string(kBlock, static_cast<char>(model[block])));
    }
  }
}

TEST_P(ConnectionTest, SeveralClientsOfOneDisk) {
  std::vector<Pair> pairs;
  for (int i = 0; i < 3; ++i) pairs.push_back(Connect());
  {
    std::vector<std::jthread> clients;
    for (unsigned i = 0; i < 3; ++i) {
      clients.emplace_back([&, i] { Exercise(*pairs[i].client, i * 64, 64, 1000 + i); });
    }
  }
  for (Pair& pair : pairs) pair.client->Send(RequestBytes(kCmdDisconnect, 0, 0, 0));
  for (Pair& pair : pairs) EXPECT_EQ(pair.client->Receive(1), "");
}

TEST_P(ConnectionTest, FinishAnswersWhatWasReceived) {
  Pair pair = Connect();
  std::string requests;
  for (uint64_t i = 0; i < 100; ++i) requests += RequestBytes(kCmdRead, i, i * kBlock, kBlock);
  pair.client->Send(requests);
  pair.client->Receive(1);
  pair.connection->Finish();
  // Whole replies, then the end.
  const std::string rest = pair.client->Receive(100 * (sizeof(SimpleReply) + kBlock));
  EXPECT_EQ((rest.size() + 1) % (sizeof(SimpleReply) + kBlock), 0u);
}

TEST_P(ConnectionTest, ClientsMayVanishWithRequestsInFlight) {
  for (int i = 0; i < 20; ++i) {
    Pair pair = Connect();
    std::string requests;
    for (uint64_t k = 0; k < 50; ++k) {
      requests += RequestBytes(kCmdRead, k, k * kBlock, 16 * kBlock);
      requests += RequestBytes(kCmdWrite, k, k * kBlock, 512, 0, std::string(512, 'x'));
    }
    pair.client->Send(requests.substr(0, requests.size() - static_cast<size_t>(i) * 100));
    pair.client->Close();
  }
}

TEST_P(ConnectionTest, AWindowOfNothingStillMakesProgress) {
  options_.window = 0;
  Pair pair = Connect();
  Exercise(*pair.client, 0, 64, 5);
  pair.client->Close();
}

TEST_P(ConnectionTest, WorkersThatAreAllKeptBusyByOneClientStopNoOther) {
  auto stuck = std::make_shared<StuckLayer>(*disk_);
  exports_ = TestExports();
  exports_.Add("disk", stuck);
  Pair busy = Connect(), other = Connect();
  std::string requests;
  for (uint64_t i = 0; i < 8; ++i) requests += RequestBytes(kCmdRead, i, 0, kBlock);
  busy.client->Send(requests);
  while (!workers_.busy()) std::this_thread::yield();
  requests.clear();
  for (uint64_t i = 0; i < 8; ++i) requests += RequestBytes(kCmdRead, i, kBlock, kBlock);
  other.client->Send(requests);
  const size_t size = 8 * (sizeof(SimpleReply) + kBlock);
  EXPECT_EQ(other.client->Receive(size).size(), size);
  stuck->Release();
  EXPECT_EQ(busy.client->Receive(size).size(), size);
  other.client->Close();
  busy.client->Close();
}

TEST_P(ConnectionTest, AbortEndsAClientThatDoesNotRead) {
  Pair pair = Connect();
  std::string requests;
  for (uint64_t i = 0; i < 64; ++i) requests += RequestBytes(kCmdRead, i, 0, kMiB);
  pair.client->Send(requests);
  pair.connection->Abort();
  pair.thread.join();
}

// What can be dropped of it is waited for.
class SlowDiscardLayer final : public WrapperLayer {
 public:
  explicit SlowDiscardLayer(Layer& inner) : WrapperLayer(inner) {}
  Result<Range> Discard(Range want, Kind) override {
    discarded += want.length;
    discarded.notify_all();
    released.wait(false);
    return want;
  }
  std::atomic<uint64_t> discarded{0};
  std::atomic<bool> released{false};
};

TEST_P(ConnectionTest, AbortGivesUpWhatTakesLong) {
  constexpr uint32_t kLength = 3u << 30;
  auto disk = MemoryDisk("qcow2", kLength);
  auto slow = std::make_shared<SlowDiscardLayer>(*disk);
  exports_ = TestExports();
  exports_.Add("disk", slow);
  Pair pair = Connect();
  pair.client->Send(RequestBytes(kCmdWriteZeroes, 1, 0, kLength));
  slow->discarded.wait(0);
  pair.connection->Abort();
  slow->released = true;
  slow->released.notify_all();
  pair.thread.join();
  EXPECT_LT(slow->discarded, kLength);
}

INSTANTIATE_TEST_SUITE_P(Layers, ConnectionTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Forgetful" : "Cached"; });

}  // namespace
}  // namespace platter::nbd
