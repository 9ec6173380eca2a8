// Connections over socket pairs, without a server: many requests in flight, several clients of one
// disk, ends of every kind. Under TSan, too.
#include "nbd/connection.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>

#include "io/file_store.h"
#include "io/read_only_store.h"
#include "io/testing/wrapper_layer.h"
#include "nbd/file_bytes.h"
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
    std::unique_ptr<Connection> connection;
    std::jthread thread;
    std::unique_ptr<Client> client;  // goes first: then the thread ends
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

// A file that can only be lent: whoever copies from it fails.
class LentStore final : public ReadOnlyStore {
 public:
  LentStore(Fd fd, uint64_t size) : fd_(std::move(fd)), size_(size) {}
  Caps caps() const override { return {}; }
  const std::string& name() const override { return name_; }
  Result<uint64_t> Size() const override { return size_; }
  using Store::Read;
  Result<> Read(uint64_t, std::span<const iovec>) override {
    return Fail(Code::kIo, "copied after all");
  }
  Result<Run> FindRun(uint64_t at) override { return Run{size_ - at, true}; }
  int fd() const override { return fd_.get(); }

 private:
  const Fd fd_;
  const uint64_t size_;
  const std::string name_ = "lent";
};

// Of a file on a disk, not every kernel says whether it can be read without waiting.
Fd FileInMemory() { return Fd(memfd_create("image", MFD_CLOEXEC)); }

class LentFileTest : public ConnectionTest {
 protected:
  static constexpr uint32_t kPart = 64 * kKiB;

  // A raw disk of `size` bytes in such a file, filled, as the default export.
  void Lend(uint64_t size) {
    Fd fd = FileInMemory();
    std::mt19937 random(7);
    content_.resize(size);
    for (char& c : content_) c = static_cast<char>(random());
    ASSERT_EQ(write(fd.get(), content_.data(), size), static_cast<ssize_t>(size));
    file_ = Fd(dup(fd.get()));
    exports_ = TestExports();
    exports_.Add("lent",
                 *(*FindFormat("raw"))->open(std::make_unique<LentStore>(std::move(fd), size), {}),
                 false);
  }

  // With so many of them processors are short, and files are lent.
  std::vector<Pair> ConnectMany() {
    std::vector<Pair> pairs;
    for (unsigned i = 0; i <= std::thread::hardware_concurrency() / 2; ++i) {
      pairs.push_back(Connect());
    }
    return pairs;
  }

  void ExpectPart(Client& client, uint64_t cookie, uint64_t offset, uint32_t length) {
    Sent sent(client.Receive(sizeof(SimpleReply)));
    auto reply = sent.Take<SimpleReply>();
    ASSERT_EQ(reply.error, 0u);
    ASSERT_EQ(reply.cookie, cookie);
    ASSERT_EQ(client.Receive(length), content_.substr(offset, length));
  }

  Fd file_;
  std::string content_;
};

TEST_P(LentFileTest, BytesGoFromTheFileToTheSocket) {
  Lend(8 * kMiB + 100);
  std::vector<Pair> pairs = ConnectMany();
  Pair& pair = pairs.back();
  // More than a socket takes at once, in the middle of pages, of one piece and of several.
  std::string requests;
  std::vector<Range> asked;
  for (uint64_t i = 0; i < 40; ++i) {
    asked.push_back({i * 12'345, static_cast<uint32_t>(kPart + i * 10'001)});
    requests += RequestBytes(kCmdRead, i, asked[i].offset, static_cast<uint32_t>(asked[i].length));
  }
  asked.push_back({8 * kMiB + 100 - kPart, kPart});
  requests += RequestBytes(kCmdRead, 40, asked[40].offset, kPart);
  pair.client->Send(requests);
  for (size_t i = 0; i < asked.size(); ++i) {
    ExpectPart(*pair.client, i, asked[i].offset, static_cast<uint32_t>(asked[i].length));
  }
  // One at a time, as somebody who waits for each reply.
  for (uint64_t i = 0; i < 20; ++i) {
    pair.client->Send(RequestBytes(kCmdRead, i, i * kPart, kPart));
    ExpectPart(*pair.client, i, i * kPart, kPart);
  }
  pair.client->Send(RequestBytes(kCmdDisconnect, 0, 0, 0));
  EXPECT_EQ(pair.client->Receive(1), "");
}

TEST_P(LentFileTest, AFileThatBecameShorterEndsTheConnection) {
  Lend(kMiB);
  std::string why;
  options_.log = [&](const std::string& line) { why = line; };
  std::vector<Pair> pairs = ConnectMany();
  Pair& pair = pairs.back();
  ASSERT_EQ(ftruncate(file_.get(), kMiB - 100), 0);
  pair.client->Send(RequestBytes(kCmdRead, 1, kMiB - kPart, kPart));
  // Never a reply that is made up.
  EXPECT_EQ(pair.client->Receive(sizeof(SimpleReply)).size(), sizeof(SimpleReply));
  EXPECT_EQ(pair.client->Receive(kPart - 100), content_.substr(kMiB - kPart, kPart - 100));
  pair.thread.join();
  EXPECT_EQ(why, "test: an image became shorter while it was read");
}

TEST_P(LentFileTest, AClientThatVanishesEndsNothingElse) {
  Lend(kMiB);
  for (int i = 0; i < 20; ++i) {
    std::vector<Pair> pairs = ConnectMany();
    Pair& pair = pairs.back();
    std::string requests;
    for (uint64_t k = 0; k < 8; ++k) requests += RequestBytes(kCmdRead, k, k * kPart, kPart);
    pair.client->Send(requests);
    pair.client->Receive(static_cast<size_t>(i) * 10'000);
    pair.client->Close();
  }
}

TEST(FileBytesTest, OnlyPlainBytesOfReadOnlyFilesAreLent) {
  Fd fd = FileInMemory();
  const std::string bytes(200'000, 'x');
  ASSERT_EQ(write(fd.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  const std::string path = fmt::format("/proc/self/fd/{}", fd.get());
  auto disk = [&](bool writable) {
    auto store = FileStore::FromFd(Fd(open(path.c_str(), writable ? O_RDWR : O_RDONLY)), "file",
                                   {.writable = writable, .lock = false});
    return *(*FindFormat("raw"))->open(std::move(*store), {.writable = writable});
  };
  std::array<FileBytes, 4> found;
  auto reader = disk(false), writer = disk(true);
  ASSERT_EQ(TryFindFileBytes(*reader, {5'000, 150'000}, found), 1u);
  EXPECT_EQ(found[0].offset, 5'000u);
  EXPECT_EQ(found[0].length, 150'000u);
  // What is in the socket would change with the next write.
  EXPECT_EQ(TryFindFileBytes(*writer, {5'000, 150'000}, found), 0u);
  // Shorter than when it was opened.
  ASSERT_EQ(ftruncate(fd.get(), 100'000), 0);
  EXPECT_EQ(TryFindFileBytes(*reader, {5'000, 150'000}, found), 0u);
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
INSTANTIATE_TEST_SUITE_P(Layers, LentFileTest, testing::Values(false));

}  // namespace
}  // namespace platter::nbd
