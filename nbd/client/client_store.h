// ClientStore: an export of an NBD server as a store.
//
// Requests go out from any thread, many at once, over one connection or over a few where the server
// says that it keeps them coherent (CAN_MULTI_CONN). Where the server can say what reads as zeros
// (the context "base:allocation"), so does FindRun. What it said is believed for a second, since
// others may write to the export as well.
//
// A lost connection. With reconnect_seconds the server is looked for that long, and it has to have
// the same export again, of the same size. Then everything that is not known to be on stable
// storage is sent once more: requests without an answer, and before them the writes that were
// answered after the last flush, since a server that died may have lost them. Copies of those are
// kept for that purpose, kMostUnflushed bytes of them; beyond that the store flushes by itself.
// Sending a write twice does no harm. Without reconnect_seconds, what was under way fails, and so
// does everything after it.
//
// Writes that are not multiples of the server's minimum block are read, changed and written back,
// under a lock on the blocks.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "io/range_lock.h"
#include "io/remote/url_opener.h"
#include "io/store.h"
#include "nbd/client/connection.h"
#include "nbd/client/unflushed.h"
#include "nbd/client/uri.h"

namespace platter::nbd {

struct ClientOptions {
  bool writable = false;
  double reconnect_seconds = 0;
  unsigned connections = 4;  // at most, where the server allows more than one
  std::chrono::milliseconds patience = std::chrono::seconds(20);  // for each step of a handshake
};

class ClientStore final : public Store {
 public:
  static constexpr uint64_t kMostUnflushed = 64 * kMiB;

  // kIo, kRefused, kReadOnly (options.writable, and the export is not).
  static Result<std::unique_ptr<ClientStore>> Open(Uri uri, const ClientOptions& options);
  ~ClientStore() override;

  Caps caps() const override;
  const std::string& name() const override { return uri_.name; }
  bool writable() const override { return options_.writable; }
  Result<uint64_t> Size() const override { return agreed_.size; }
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override;
  Result<> Write(uint64_t at, std::span<const iovec> from) override;
  Result<> Zero(Range range, bool may_unmap) override;
  // Nothing where the server knows no FLUSH: what it answered is as safe as it gets then.
  Result<> Sync() override;
  Result<> Resize(uint64_t size) override;
  Result<> Allocate(Range range) override;
  Result<Run> FindRun(uint64_t at) override;

  const Agreed& agreed() const { return agreed_; }
  size_t connections() const;  // that are open

 private:
  using ConnectionPtr = std::shared_ptr<ClientConnection>;
  struct Picked {
    ConnectionPtr connection;
    uint64_t era;
  };
  // The runs that the last answer to BLOCK_STATUS told of; FindRun is asked for one after the
  // other.
  struct KnownRuns {
    uint64_t begin = 0;
    std::vector<std::pair<uint64_t, bool>> runs;  // where each ends, and whether it is data
    std::chrono::steady_clock::time_point until;  // believed
  };

  ClientStore(Uri uri, const ClientOptions& options, ConnectionPtr first);

  Result<> CheckChange(Range range) const;
  // Sends the request until it is answered; what the server refused is an error. A change is kept
  // until the next flush.
  Result<> Perform(Call& call);
  Result<> Answer(const Call& call) const;
  Result<Picked> Pick();
  void ConnectMore(const Picked& picked);
  Result<> Recover(uint64_t era, ClientConnection& lost);
  Result<ConnectionPtr> Reconnect(uint64_t era, const Error& why);
  Result<ConnectionPtr> TryReconnect(uint64_t era);

  // Whole blocks, in as many requests as that takes.
  Result<> Transfer(Command command, uint64_t at, std::span<const iovec> data);
  Result<> WriteAny(uint64_t at, std::span<const iovec> from);
  Result<> WriteBlocks(uint64_t at, std::span<const iovec> from);
  Result<> PatchBlock(Range part, std::span<const iovec> from);
  Result<> WriteZeros(Range range);
  Result<> ZeroBlocks(Range blocks, bool may_unmap);
  RangeLock::Guard LockBlocks(Range range);
  Result<KnownRuns> AskRuns(uint64_t at);
  void ForgetRuns();

  const Uri uri_;
  const ClientOptions options_;
  const Agreed agreed_;
  const bool keeps_;  // written bytes are kept until they are flushed

  // Rank: recover_ before session_, which is released while requests are under way.
  Mutex recover_;          // one thread looks for the server
  mutable Mutex session_;  // guards what follows
  std::vector<ConnectionPtr> open_;
  uint64_t era_ = 0;  // counts sets of connections
  size_t next_ = 0;
  bool no_more_ = false;       // connections: the server does not take another
  std::optional<Error> lost_;  // for good

  Unflushed unflushed_;
  RangeLock blocks_;  // of writes, where the minimum is more than a byte

  Mutex runs_;  // guards what follows; a leaf
  KnownRuns known_;
  uint64_t changes_ = 0;  // counts writes, before and after each: what was asked before is void
};

// nbd://, nbds://, nbd+unix://, nbds+unix://, nbd+vsock://, nbds+vsock://.
class ClientOpener final : public UrlOpener {
 public:
  explicit ClientOpener(ClientOptions options) : options_(options) {}
  std::span<const std::string_view> schemes() const override;
  bool has_folders() const override { return false; }
  Result<std::unique_ptr<Store>> Open(const std::string& url, bool writable) const override;

 private:
  const ClientOptions options_;
};

}  // namespace platter::nbd
