// CachedStore: a RemoteSource as a store, for reading.
//
// What was fetched stays in memory, in runs of whole blocks, until its room is needed: what was
// read least recently goes first. Reads that follow one another make a few threads fetch what
// comes next, more of it the longer it goes on, in several requests at once; so a copy from front
// to back waits for the network's width and not for its delay. Reads that jump about fetch what
// they need and no more.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/sync.h"
#include "io/buffer.h"
#include "io/read_only_store.h"
#include "io/remote/disk_cache.h"
#include "io/remote/remote_source.h"

namespace platter {

struct CacheOptions {
  uint64_t memory = 64 * kMiB;  // bytes kept; those that are being read come on top
  uint64_t ahead = 16 * kMiB;   // bytes fetched beyond what was asked for, at most
  unsigned threads = 4;         // that fetch ahead
  std::string folder;           // blocks are kept there from run to run; empty: nowhere
};

class CachedStore final : public ReadOnlyStore {
 public:
  // kIo, kRefused (the folder), kUnsupported (more than 8 EiB).
  static Result<std::unique_ptr<Store>> Open(std::unique_ptr<RemoteSource> source,
                                             const CacheOptions& options);
  ~CachedStore() override;

  Caps caps() const override { return {.preferred = 1 << 20}; }
  const std::string& name() const override { return source_->name(); }
  Result<uint64_t> Size() const override { return size_; }
  using Store::Read;
  Result<> Read(uint64_t at, std::span<const iovec> into) override;
  Result<Run> FindRun(uint64_t at) override;
  size_t TryRead(uint64_t at, std::span<const iovec> into) override;

 private:
  // Bytes that are fetched, and thrown away, together.
  struct Piece {
    Range range;  // whole blocks, but for the file's last
    Buffer data;
    bool ready = false, failed = false;
    bool ahead = false;  // nobody has asked for it yet
    uint64_t used = 0;   // when: the larger the later
    std::optional<Error> error;
  };
  using PiecePtr = std::shared_ptr<Piece>;

  CachedStore(std::unique_ptr<RemoteSource> source, const CacheOptions& options,
              std::unique_ptr<DiskCache> disk);

  Result<PiecePtr> Get(Range want);
  PiecePtr FindLocked(uint64_t at);
  PiecePtr AddLocked(Range wish);
  void NoteMissLocked(Range got);
  void FetchAheadLocked(uint64_t from);
  void MakeRoomLocked(uint64_t bytes);
  void Load(const PiecePtr& piece);
  Result<> LoadBytes(Piece& piece);
  void RunAhead();

  const std::unique_ptr<RemoteSource> source_;
  const uint64_t size_;
  const CacheOptions options_;
  const std::unique_ptr<DiskCache> disk_;  // null: none

  Mutex mutex_;      // guards everything below, and the pieces but for the data of one being loaded
  CondVar changed_;  // a piece is ready, or there is something to fetch
  std::map<uint64_t, PiecePtr> pieces_;  // by offset; disjoint
  uint64_t held_ = 0;                    // bytes of pieces_
  uint64_t clock_ = 0;
  uint64_t next_ = UINT64_MAX;  // where a reader that goes from front to back is going to be
  uint64_t window_ = 0;         // bytes to fetch ahead; 0: reads jump about
  std::deque<PiecePtr> wanted_;
  bool stop_ = false;
  std::vector<std::jthread> threads_;  // last: they use all of the above
};

}  // namespace platter
