// Export: a disk, or a part of one, under the name by which clients ask for it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/range.h"
#include "base/result.h"
#include "base/sync.h"
#include "io/layer.h"
#include "nbd/nbd_wire.h"

namespace platter::nbd {

// Calls `visit` for the parts of `within` (of the layer) that have a mark, ascending and apart from
// one another, until it answers false. Returns how far it looked: all of `within`, or less, but
// something, where looking takes long. Any thread.
using VisitMarked =
    std::function<Result<uint64_t>(Range within, const std::function<bool(Range)>& visit)>;

// What BLOCK_STATUS can say of an export.
struct MetaContext {
  enum Kind : uint8_t {
    kAllocation,  // "base:allocation": kStateHole, kStateZero
    kDepth,       // "qemu:allocation-depth": 0 not allocated, 1 in the top layer, 2 below it, ...
    // "qemu:dirty-bitmap:NAME", what was written since; "platter:snapshot-diff:NAME", what may
    // differ from a snapshot: kStateMarked.
    kMarked,
  } kind;
  std::string name;
  VisitMarked visit = {};  // kMarked
};

// The size of an export that clients may change (NBD_CMD_RESIZE). Any thread.
class ResizableSize {
 public:
  // `layer` has a Resizer. `allowed` says why a size is not wanted, for other reasons than the
  // layer's.
  ResizableSize(std::shared_ptr<Layer> layer, std::function<Result<>(uint64_t)> allowed);

  uint64_t now() const { return now_.load(); }
  uint64_t largest() const { return largest_.load(); }  // that it ever was
  // One at a time. kRefused, kNoSpace, kIo and the like.
  Result<> Change(uint64_t size);

 private:
  const std::shared_ptr<Layer> layer_;
  const std::function<Result<>(uint64_t)> allowed_;
  Mutex mutex_;  // held while the size changes; before everything that the layer takes
  std::atomic<uint64_t> now_, largest_;
};

// What clients did, since the start. Any thread; read one by one, so not one moment's picture.
struct Counters {
  static constexpr size_t kCommands = kCmdResize + 1;
  std::atomic<uint64_t> requests[kCommands] = {};
  std::atomic<uint64_t> bytes_read{0}, bytes_written{0};
  std::atomic<uint64_t> errors{0};  // replies that say so
  std::atomic<uint64_t> waited{0};  // requests handed to a worker
};

// Fixed while it is used, but for its size; any thread.
struct Export {
  std::string name, description;
  std::shared_ptr<Layer> layer;
  Range window;  // of the layer: the export's first byte, and its size where that is fixed
  std::unique_ptr<ResizableSize> resizable;  // null: it is
  bool writable = false;
  bool rotational = false;
  std::vector<MetaContext> contexts;
  mutable Counters counters;

  uint64_t size() const { return resizable ? resizable->now() : window.length; }
  uint64_t largest_size() const { return resizable ? resizable->largest() : window.length; }
};

// All exports of a server. Any thread.
class Exports {
 public:
  virtual ~Exports() = default;
  // "" is the default export. The error says why there is none, for the client to read. May wait.
  virtual Result<std::shared_ptr<Export>> Find(std::string_view name) = 0;
  // In the order in which they are to be listed.
  virtual void ForEach(
      const std::function<void(const std::string& name, const std::string& description)>& each) = 0;
};

}  // namespace platter::nbd
