// Disk: an image with everything below it, as one Layer: the chain of layers
// from the one that was opened (depth 0) to its last ancestor.
//
// Locks: the structure lock (a shared mutex, rank 1, above every lock of a
// layer) is held shared by each guest operation and exclusively by resize,
// snapshots, commit and repair; nothing finer is needed. Layers below the top
// are opened read-only and never free space.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cow/gate.h"
#include "formats/format.h"
#include "io/layer.h"

namespace platter {

struct DiskOptions {
  std::string format; // empty: probe, and refuse what is not certain
  FileOptions file;
  bool no_backing = false; // parents are not opened: their bytes read as holes
  std::string snapshot;    // of the top image
  std::string parent;      // open this file instead of the recorded parent...
  std::string parent_format; // ... in this format
  const Secret *secret = nullptr;
  bool info_only =
      false; // headers only: no parents, no data files, no passphrase
  std::map<std::string, std::string> options; // of the format
};

// What an image and, if asked, its parents say of themselves.
struct ChainEntry {
  std::string path; // as opened
  Info info;
};

// Reads headers only: of `path`, and with `parents` of every layer below it,
// through the gate.
Result<std::vector<ChainEntry>>
ReadChainInfo(const std::string &path, const DiskOptions &options,
              const Gate &gate, bool parents,
              std::vector<std::string> *warnings);

// The format that `name` says, or, where it is empty, that the store's first
// bytes say. kRefused for contents that must not be taken for raw; a warning
// where it is taken for raw.
Result<const Format *> ChooseFormat(Store &store, const std::string &name,
                                    std::vector<std::string> *warnings);

class Disk : public Layer {
public:
  // Opens `path` and, through the gate, its chain. `path` may be several files
  // joined by the caller into options (raw parts). Warnings for the user are
  // appended to `warnings`.
  static Result<std::unique_ptr<Disk>> Open(const std::string &path,
                                            const DiskOptions &options,
                                            const Gate &gate,
                                            std::vector<std::string> *warnings);

  // A chain of layers that are open already, the top first. For tests and for
  // new images.
  static std::unique_ptr<Disk>
  FromLayers(std::vector<std::unique_ptr<Layer>> layers);

  ~Disk() override;

  // Of the top layer; size is the chain's.
  const Info &info() const override;
  Pin Hold() override;
  // Never answers kParent: what no layer holds is kHole.
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<std::unique_ptr<Reservation>>
  ReservePacked(Range units, std::span<const uint32_t> sizes) override;
  // kHole on a disk with parents that hold something there becomes kZero.
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override;
  Resizer *resizer() override;

  size_t depth() const { return layers_.size(); }
  Layer &layer(size_t depth) { return *layers_[depth]; }
  // Path of each layer as opened.
  const std::string &path(size_t depth) const { return paths_[depth]; }

private:
  Disk() = default;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::vector<std::string> paths_;
};

} // namespace platter
