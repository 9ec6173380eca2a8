#include "cow/disk.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "io/bitmapper.h"
#include "io/engine/engine.h"

namespace platter {

namespace {

constexpr size_t kMostLayers = 255;  // Extent::depth is a byte

// True if `next` goes on where `last` ends, so that one extent can say both.
bool Continues(const Extent& last, const Extent& next) {
  if (last.kind != next.kind || last.writable != next.writable || last.depth != next.depth ||
      last.store != next.store || last.packed() || next.packed() || last.codec != next.codec) {
    return false;
  }
  return last.store == nullptr || last.host.end() == next.host.offset;
}

Extent HoleAt(Range guest, uint8_t depth) {
  return {.guest = guest, .kind = Kind::kHole, .depth = depth};
}

using Layers = std::vector<std::unique_ptr<Layer>>;

// Fills the caller's array with what a chain says. `map(layer, range, out)` is Layer::Map, or
// TryMap, which answers 0 where it would have to wait: the plan then ends there.
//
// Each layer is asked for a run at a time, and what it leaves to its parent is planned by a call
// for just that run: every table is looked up once, however deep the chain.
template <class MapLayer>
class Planner {
 public:
  Planner(const Layers& layers, bool open_ended, std::span<Extent> out, MapLayer map)
      : layers_(layers), open_ended_(open_ended), out_(out), map_(map) {}

  size_t count() const { return count_; }

  // Adds `want` as the layers from `depth` down answer; false if it ended before the end of it.
  Result<bool> Add(size_t depth, Range want) {
    Layer& layer = *layers_[depth];
    const bool last = depth + 1 == layers_.size();
    const uint64_t end = std::min(want.end(), layer.info().size);
    std::array<Extent, 8> found;
    while (want.offset < end) {
      if (count_ == out_.size()) return false;
      std::span<Extent> room(found.data(), std::min(found.size(), out_.size() - count_));
      size_t count = TRY(map_(layer, Range::FromTo(want.offset, end), room));
      if (count == 0) return false;
      for (Extent& extent : room.first(count)) {
        extent.depth = DepthOf(depth);
        if (depth > 0) extent.writable = false;  // writes go to the top, whatever a parent says
        bool below = extent.kind == Kind::kParent && !last;
        if (extent.kind == Kind::kParent && last && !open_ended_) {
          extent = HoleAt(extent.guest, DepthOf(depth));
        }
        if (!(below ? TRY(Add(depth + 1, extent.guest)) : Append(extent))) return false;
        want = Range::FromTo(extent.guest.end(), want.end());
      }
    }
    // Past the end of a parent that is smaller than its child.
    return want.empty() || Append(HoleAt(want, DepthOf(depth)));
  }

 private:
  uint8_t DepthOf(size_t depth) const { return open_ended_ ? 0 : static_cast<uint8_t>(depth); }

  bool Append(const Extent& extent) {
    if (count_ > 0 && Continues(out_[count_ - 1], extent)) {
      out_[count_ - 1].guest.length += extent.guest.length;
      out_[count_ - 1].host.length += extent.host.length;
      return true;
    }
    if (count_ == out_.size()) return false;
    out_[count_++] = extent;
    return true;
  }

  const Layers& layers_;
  const bool open_ended_;
  const std::span<Extent> out_;
  const MapLayer map_;
  size_t count_ = 0;
};

Result<size_t> MapLayer(Layer& layer, Range want, std::span<Extent> out) {
  return layer.Map(want, out);
}
Result<size_t> TryMapLayer(Layer& layer, Range want, std::span<Extent> out) {
  return layer.TryMap(want, out);
}

// A chain of one: its own array is filled, and there is nobody to ask.
void ParentsToHoles(std::span<Extent> extents) {
  for (Extent& extent : extents) {
    if (extent.kind == Kind::kParent) extent = HoleAt(extent.guest, 0);
  }
}

}  // namespace

// Growing a disk over a longer parent would show what the parent holds there; the guest expects
// zeros. A format that can says them first and grows then. For the others, a crash between the two
// steps shows the parent's bytes.
class Disk::GrowingResizer final : public Resizer {
 public:
  GrowingResizer(Disk& disk, Resizer& top) : disk_(disk), top_(top) {}

  Result<> Resize(uint64_t size, Preallocation preallocation) override {
    Alone alone(disk_);
    const uint64_t old_size = disk_.info().size;
    uint64_t shown = disk_.depth() == 1 ? 0 : std::min(size, disk_.layer(1).info().size);
    if (shown <= old_size) return top_.Resize(size, preallocation);
    TRY(OwnLastUnit(alone));
    const Range hidden = Range::FromTo(old_size, shown);
    Result<> grown = top_.GrowOver(hidden, size, preallocation);
    if (grown || grown.error().code() != Code::kUnsupported) return grown;
    TRY(top_.Resize(size, preallocation));
    TRY(Zero(alone, hidden, true));
    return alone.Flush();
  }

 private:
  // What a unit holds past the end of the disk comes from below as the rest of it does, unless the
  // unit is the top layer's: writing one byte of it as it is makes it that.
  Result<> OwnLastUnit(Alone& alone) {
    const uint64_t size = disk_.info().size;
    if (size == 0 || IsAligned(size, std::max<uint64_t>(disk_.info().unit, 1))) return {};
    Extent last;
    TRY(disk_.layer(0).Map({size - 1, 1}, std::span(&last, 1)));
    if (last.kind != Kind::kParent) return {};
    std::byte byte{};
    TRY(Read(alone, size - 1, Bytes(&byte, 1)));
    return Write(alone, size - 1, ConstBytes(&byte, 1));
  }

  Disk& disk_;
  Resizer& top_;
};

class Disk::ExclusiveSnapshotter final : public Snapshotter {
 public:
  ExclusiveSnapshotter(Disk& disk, Snapshotter& top) : disk_(disk), top_(top) {}

  Result<> CreateSnapshot(const std::string& name) override {
    const Alone alone(disk_);
    return top_.CreateSnapshot(name);
  }
  Result<> ApplySnapshot(const std::string& wanted) override {
    const Alone alone(disk_);
    return top_.ApplySnapshot(wanted);
  }
  Result<> DeleteSnapshot(const std::string& wanted) override {
    const Alone alone(disk_);
    return top_.DeleteSnapshot(wanted);
  }

 private:
  Disk& disk_;
  Snapshotter& top_;
};

class Disk::ExclusiveBitmapper final : public Bitmapper {
 public:
  ExclusiveBitmapper(Disk& disk, Bitmapper& top) : disk_(disk), top_(top) {}

  Result<> AddBitmap(const NewBitmap& bitmap) override {
    const Alone alone(disk_);
    return top_.AddBitmap(bitmap);
  }
  Result<> RemoveBitmap(const std::string& name) override {
    const Alone alone(disk_);
    return top_.RemoveBitmap(name);
  }
  Result<> ClearBitmap(const std::string& name) override {
    const Alone alone(disk_);
    return top_.ClearBitmap(name);
  }
  Result<> EnableBitmap(const std::string& name, bool enabled) override {
    const Alone alone(disk_);
    return top_.EnableBitmap(name, enabled);
  }
  Result<> MergeBitmap(const std::string& name, Bitmapper& source,
                       const std::string& from) override {
    const Alone alone(disk_);
    // Asked through this one, it would wait for us.
    return top_.MergeBitmap(name, &source == this ? top_ : source, from);
  }
  Result<> VisitDirty(const std::string& name, Range within, const Visit& visit) override {
    const Pin pin = disk_.Hold();
    return top_.VisitDirty(name, within, visit);
  }

 private:
  Disk& disk_;
  Bitmapper& top_;
};

// Gives its place in the structure lock back after the reservation itself is gone.
class Disk::SharedReservation final : public Reservation {
 public:
  SharedReservation(std::unique_ptr<Reservation> inner, StructureLock::Shared shared)
      : shared_(std::move(shared)), inner_(std::move(inner)) {}
  Range range() const override { return inner_->range(); }
  std::span<const Extent> target() const override { return inner_->target(); }
  std::span<const Range> fill() const override { return inner_->fill(); }
  Result<> Publish() override { return inner_->Publish(); }

 private:
  const StructureLock::Shared shared_;
  const std::unique_ptr<Reservation> inner_;
};

Disk::Disk(std::vector<std::unique_ptr<Layer>> layers, std::vector<std::string> paths)
    : layers_(std::move(layers)), paths_(std::move(paths)) {
  CHECK(!layers_.empty() && layers_.size() <= kMostLayers);
  CHECK(paths_.size() == layers_.size());
  if (layers_[0]->info().writable) structure_ = std::make_unique<StructureLock>();
  if (Resizer* top = layers_[0]->resizer()) {
    resizer_ = std::make_unique<GrowingResizer>(*this, *top);
  }
  if (Snapshotter* top = layers_[0]->snapshotter()) {
    snapshotter_ = std::make_unique<ExclusiveSnapshotter>(*this, *top);
  }
  if (Bitmapper* top = layers_[0]->bitmapper()) {
    bitmapper_ = std::make_unique<ExclusiveBitmapper>(*this, *top);
  }
}

Disk::~Disk() = default;

std::unique_ptr<Disk> Disk::FromLayers(std::vector<std::unique_ptr<Layer>> layers) {
  std::vector<std::string> paths(layers.size());
  return std::unique_ptr<Disk>(new Disk(std::move(layers), std::move(paths)));
}

std::unique_ptr<Disk> Disk::Stack(std::unique_ptr<Layer> top, std::string path,
                                  std::unique_ptr<Disk> parents) {
  std::vector<std::unique_ptr<Layer>> layers;
  std::vector<std::string> paths;
  layers.push_back(std::move(top));
  paths.push_back(std::move(path));
  if (parents) {
    std::ranges::move(parents->layers_, std::back_inserter(layers));
    std::ranges::move(parents->paths_, std::back_inserter(paths));
  }
  return std::unique_ptr<Disk>(new Disk(std::move(layers), std::move(paths)));
}

Result<size_t> Disk::Map(Range want, std::span<Extent> out) {
  if (layers_.size() == 1) {
    size_t count = TRY(layers_[0]->Map(want, out));
    if (!open_ended_) ParentsToHoles(out.first(count));
    return count;
  }
  if (want.empty() || !FitsIn(want.offset, want.length, info().size)) {
    return Fail(Code::kOutOfRange, "{} bytes at {} are outside the disk of {} bytes", want.length,
                want.offset, info().size);
  }
  Planner planner(layers_, open_ended_, out, MapLayer);
  TRY(planner.Add(0, want));
  return planner.count();
}

size_t Disk::TryMap(Range want, std::span<Extent> out) {
  if (layers_.size() == 1) {
    size_t count = layers_[0]->TryMap(want, out);
    if (!open_ended_) ParentsToHoles(out.first(count));
    return count;
  }
  if (want.empty() || !FitsIn(want.offset, want.length, info().size)) return 0;
  Planner planner(layers_, open_ended_, out, TryMapLayer);
  // TryMap does not fail; what was planned before it would have had to wait is good.
  (void)planner.Add(0, want).has_value();
  return planner.count();
}

Pin Disk::Hold() {
  if (!structure_) return layers_[0]->Hold();
  Pin shared = structure_->Hold();
  return Pin::Both(layers_[0]->Hold(), std::move(shared));
}

StructureLock::Shared Disk::Share() {
  return structure_ ? structure_->Share() : StructureLock::Shared();
}

Disk::Alone::Alone(Disk& disk)
    : disk_(disk), lock_(disk.structure_ ? disk.structure_->Lock() : StructureLock::Exclusive()) {}

Result<std::unique_ptr<Reservation>> Disk::Reserve(Range want) {
  StructureLock::Shared shared = Share();
  return std::make_unique<SharedReservation>(TRY(layers_[0]->Reserve(want)), std::move(shared));
}

Result<std::unique_ptr<Reservation>> Disk::ReservePacked(Range units,
                                                         std::span<const uint32_t> sizes) {
  StructureLock::Shared shared = Share();
  return std::make_unique<SharedReservation>(TRY(layers_[0]->ReservePacked(units, sizes)),
                                             std::move(shared));
}

Result<> Disk::Flush() {
  StructureLock::Shared shared = Share();
  return layers_[0]->Flush();
}

// Whether some byte of `range` reads as anything but a hole or a zero below the top. Stops at the
// first; data that happens to be zeros counts.
Result<bool> Disk::ParentsHold(Range range) {
  std::array<Extent, 16> found;
  while (!range.empty()) {
    Planner planner(layers_, open_ended_, found, MapLayer);
    TRY(planner.Add(1, range));
    for (const Extent& extent : std::span(found).first(planner.count())) {
      if (extent.kind == Kind::kData) return true;
    }
    range = Range::FromTo(found[planner.count() - 1].guest.end(), range.end());
  }
  return false;
}

Result<Range> Disk::Discard(Range want, Kind leave) {
  StructureLock::Shared shared = Share();
  return Drop(want, leave);
}

Result<Range> Disk::Drop(Range want, Kind leave) {
  // The top layer does not know whether what is below shows: zeros have to be said where it does,
  // and where it does not, dropping the unit is the same and costs nothing.
  if (leave == Kind::kHole && layers_.size() > 1) {
    leave = TRY(ParentsHold(want)) ? Kind::kZero : Kind::kParent;
  }
  return layers_[0]->Discard(want, leave);
}

Resizer* Disk::resizer() { return resizer_.get(); }
Snapshotter* Disk::snapshotter() { return snapshotter_.get(); }
Bitmapper* Disk::bitmapper() { return bitmapper_.get(); }

}  // namespace platter
