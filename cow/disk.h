// Disk: an image with everything below it, as one Layer: the chain of layers from the one that was
// opened (depth 0) to its last ancestor.
//
// Locks: the structure lock (cow/structure_lock.h), outside of all others. Guest operations share
// it: a Pin and a Reservation hold it as long as they live. What changes structure has it alone:
// resizer(), snapshotter() and bitmapper() see to that themselves, and whoever calls them holds
// neither; anything else takes a Disk::Alone. Otherwise the chain is fixed once it is open, layers
// below the top are opened for reading and never free space, and each layer guards itself.
//
// layer() goes past the lock: it is for what nobody can change meanwhile, under a Pin of the disk
// or where the caller is its only user.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cow/gate.h"
#include "cow/structure_lock.h"
#include "formats/format.h"
#include "io/layer.h"
#include "io/unit_cache.h"
#include "io/unpack/unpacked_store.h"

namespace platter {

struct DiskOptions {
  std::string format;  // empty: probe, and refuse what is not certain
  FileOptions file;
  bool no_backing = false;  // parents are not opened: their bytes read as holes
  // How many images of the chain are opened. What the last of them leaves to a parent that there is
  // stays kParent, and nothing is told of which image said what: Extent::depth is 0.
  size_t layers = SIZE_MAX;
  std::string snapshot;            // of the top image
  std::string parent;              // open this file instead of the recorded parent...
  std::string parent_format;       // ... in this format
  const Secret* secret = nullptr;  // for each encrypted image of the chain
  bool info_only = false;          // headers only: no parents, no data files, no passphrase
  // Compressed files and packages around the top image: `format` says what is inside, with `inside`
  // also where it is raw (cow/unwrap.h).
  bool inside = false;
  UnpackLimits unpack;
  // Of the top image's format, and one for any: "parts", files that follow the first one in a row,
  // as "b:c" ("\:" is a colon within a name).
  std::map<std::string, std::string> options;
};

// What an image and, if asked, its parents say of themselves.
struct ChainEntry {
  std::string path;  // as opened
  Info info;
  std::vector<Facts> around;  // what it was taken out of, from the outside in, each with a "type"
};

// The image that the user named, as the store that its format reads, for what works on the file
// itself. Taken out of what is around it; through the gate it may name files, which `opener` opens.
struct TopImage {
  std::unique_ptr<Store> store;
  const Format* format = nullptr;
  std::unique_ptr<std::set<FileId>> files;  // that are open; before what adds to it
  std::unique_ptr<Opener> opener;
};
// `gate` outlives the image. Errors as Disk::Open's.
Result<TopImage> OpenTopImage(const std::string& name, const DiskOptions& options, const Gate& gate,
                              std::vector<std::string>* warnings);

// Reads headers only: of `path`, and with `parents` of every layer below it, through the gate.
Result<std::vector<ChainEntry>> ReadChainInfo(const std::string& path, const DiskOptions& options,
                                              const Gate& gate, bool parents,
                                              std::vector<std::string>* warnings);

// The format that `name` says, or, where it is empty, that the store's content says. kUnsupported
// for a format that we do not read, kRefused for what else must not be taken for raw; a warning
// where it is taken for raw.
Result<const Format*> ChooseFormat(Store& store, const std::string& name,
                                   std::vector<std::string>* warnings);

class Disk : public Layer {
 public:
  // The disk for one who changes its structure; see below.
  class Alone;

  // Opens `path` ("a.ova:disk2.vmdk": a disk of a package) and, through the gate, its chain.
  // Warnings for the user are appended to `warnings`, which may be null.
  static Result<std::unique_ptr<Disk>> Open(const std::string& path, const DiskOptions& options,
                                            const Gate& gate, std::vector<std::string>* warnings);

  // A chain of layers that are open already, the top first: 1 to 255 of them. For tests and for
  // new images.
  static std::unique_ptr<Disk> FromLayers(std::vector<std::unique_ptr<Layer>> layers);

  // The parents of an image that is being made at `image_path` and is to record `reference`: the
  // chain that starts with that file. The user names it, so the gate's policy is for those below
  // it; a warning says so where the policy is going to refuse the new image's parent.
  static Result<std::unique_ptr<Disk>> OpenParents(const std::string& image_path,
                                                   const Reference& reference,
                                                   const DiskOptions& options, const Gate& gate,
                                                   std::vector<std::string>* warnings);

  // Puts `top`, opened at `path`, on top of `parents` (null: none).
  static std::unique_ptr<Disk> Stack(std::unique_ptr<Layer> top, std::string path,
                                     std::unique_ptr<Disk> parents);

  ~Disk() override;

  // Of the top layer.
  const Info& info() const override { return layers_[0]->info(); }
  Pin Hold() override;
  // Under a Pin, where the structure may change meanwhile. Never answers kParent (but see
  // DiskOptions::layers): what no layer holds is kHole, and so is what lies past the end of a
  // parent smaller than its child.
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<std::unique_ptr<Reservation>> ReservePacked(Range units,
                                                     std::span<const uint32_t> sizes) override;
  // kHole on a disk with parents that hold something there becomes kZero.
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override;
  // Changes wait until no guest operation is under way, and keep new ones waiting. Growing over a
  // longer parent zeroes what would show through. Two disks whose bitmaps are merged into each
  // other are not at the same time.
  Resizer* resizer() override;
  Snapshotter* snapshotter() override;
  Bitmapper* bitmapper() override;
  // Of all layers: what those below the top name is never freed.
  UnitCache* unit_cache() override { return &unit_cache_; }

  size_t depth() const { return layers_.size(); }
  Layer& layer(size_t depth) { return *layers_[depth]; }
  // Path of each layer as opened; "" for layers that came in open.
  const std::string& path(size_t depth) const { return paths_[depth]; }

 private:
  class GrowingResizer;
  class ExclusiveSnapshotter;
  class ExclusiveBitmapper;
  class SharedReservation;

  Disk(std::vector<std::unique_ptr<Layer>> layers, std::vector<std::string> paths);
  Result<bool> ParentsHold(Range range);
  StructureLock::Shared Share();
  // Without the lock.
  Result<Range> Drop(Range want, Kind leave);

  std::vector<std::unique_ptr<Layer>> layers_;
  std::vector<std::string> paths_;
  UnitCache unit_cache_;
  bool open_ended_ = false;  // DiskOptions::layers left some out
  // Null: there is nobody who could change anything, since the top is read only.
  std::unique_ptr<StructureLock> structure_;
  std::unique_ptr<GrowingResizer> resizer_;            // null: the top layer cannot be resized
  std::unique_ptr<ExclusiveSnapshotter> snapshotter_;  // null: it has no snapshots
  std::unique_ptr<ExclusiveBitmapper> bitmapper_;      // null: it has no bitmaps
};

// As long as it lives, guest operations happen through it alone, from any thread: those that were
// under way have been waited for, and new ones of the disk wait. Whoever makes one holds no Pin and
// no Reservation of the disk, and destroys it on the same thread.
class Disk::Alone final : public Layer {
 public:
  explicit Alone(Disk& disk);

  const Info& info() const override { return disk_.info(); }
  Pin Hold() override { return disk_.layer(0).Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override { return disk_.Map(want, out); }
  size_t TryMap(Range want, std::span<Extent> out) override { return disk_.TryMap(want, out); }
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override {
    return disk_.layer(0).Reserve(want);
  }
  Result<std::unique_ptr<Reservation>> ReservePacked(Range units,
                                                     std::span<const uint32_t> sizes) override {
    return disk_.layer(0).ReservePacked(units, sizes);
  }
  Result<Range> Discard(Range want, Kind leave) override { return disk_.Drop(want, leave); }
  Result<> Flush() override { return disk_.layer(0).Flush(); }
  UnitCache* unit_cache() override { return disk_.unit_cache(); }

 private:
  Disk& disk_;
  const StructureLock::Exclusive lock_;
};

}  // namespace platter
