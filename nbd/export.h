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
#include "io/layer.h"
#include "nbd/nbd_wire.h"

namespace platter::nbd {

// What BLOCK_STATUS can say of an export.
struct MetaContext {
  enum Kind : uint8_t {
    kAllocation,  // "base:allocation": kStateHole, kStateZero
    kDepth,       // "qemu:allocation-depth": 0 not allocated, 1 in the top layer, 2 below it, ...
    kBitmap,      // "qemu:dirty-bitmap:NAME": kStateDirty
  } kind;
  std::string name;
  std::string bitmap = {};  // of the layer's Bitmapper
};

// What clients did, since the start. Any thread; read one by one, so not one moment's picture.
struct Counters {
  static constexpr size_t kCommands = kCmdResize + 1;
  std::atomic<uint64_t> requests[kCommands] = {};
  std::atomic<uint64_t> bytes_read{0}, bytes_written{0};
  std::atomic<uint64_t> errors{0};  // replies that say so
  std::atomic<uint64_t> waited{0};  // requests handed to a worker
};

// Fixed while it is used; any thread.
struct Export {
  std::string name, description;
  std::shared_ptr<Layer> layer;
  Range window;  // of the layer: the export's first byte and its size
  bool writable = false;
  bool rotational = false;
  std::vector<MetaContext> contexts;
  mutable Counters counters;

  uint64_t size() const { return window.length; }
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
