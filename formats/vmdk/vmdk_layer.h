// VmdkLayer: a VMDK disk as a Layer: a descriptor and its extents.
//
// The descriptor says which extents make up the disk, one behind the other: flat ones (a run of
// bytes of a file or device), sparse ones (vmdk_sparse.h), and ones of zeros. Each has an access:
// RW; RDONLY, which can be read only; NOACCESS, which can be neither. Extents may share a file.
//
// The content id (CID) of the descriptor is what a child records of its parent. It has to change
// when the content does, and before: so the first Reserve or Discard of an open image writes
// a new one, with a Sync, and only from then on Map calls anything writable. An image that
// was opened for writing and never written stays as it was, byte by byte. A crash in between
// leaves a disk that its children do not take for their parent although nothing changed: safe.
//
// Locks, in this order: ranges_ (guest bytes of a reservation or discard, in whole grains),
// begin_mutex_, those of the extents.
//
// Flush is that of each extent, in the order of the disk. Resizing is in vmdk_resize.cc.
//
// A stream-optimized disk is written once, from the first grain to the last, while it is made
// (ReservePacked); afterwards it can be read only.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/sync.h"
#include "formats/format.h"
#include "formats/vmdk/vmdk_descriptor.h"
#include "formats/vmdk/vmdk_sparse.h"
#include "io/layer.h"
#include "io/range_lock.h"

namespace platter::vmdk {

// See Format::open.
Result<std::unique_ptr<Layer>> OpenVmdk(std::unique_ptr<Store> store, const OpenOptions& options);

struct DiskExtent {
  Range guest;                           // bytes of the disk
  ExtentLine line;                       // as recorded
  Store* store = nullptr;                // null: zeros, or NOACCESS
  uint64_t offset = 0, end = 0;          // flat: bytes of `store`: where it begins, and its size
  std::unique_ptr<SparseExtent> sparse;  // null: flat or zeros
};

class VmdkReservation;

class VmdkLayer final : public Layer, private Resizer {
 public:
  // What open found out; see vmdk_open.cc.
  struct Parts {
    Store* file = nullptr;         // that was opened
    std::unique_ptr<Store> owned;  // the same, of a layer
    std::vector<std::unique_ptr<Store>> others;
    std::unique_ptr<PinSet> pins;
    Descriptor descriptor;
    Range embedded;  // of the descriptor in `file`; empty: it is all of it, or there is none
    std::vector<DiskExtent> extents;  // ascending; empty at most the only one
    Info info;
    bool info_only = false;
    bool fresh = false;
  };
  explicit VmdkLayer(Parts parts);
  // Flushes and cuts off what files were made too long by; errors are lost, so Flush before.
  ~VmdkLayer() override;

  const Info& info() const override { return p_.info; }
  Pin Hold() override { return p_.pins->Hold(); }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<std::unique_ptr<Reservation>> ReservePacked(Range units,
                                                     std::span<const uint32_t> sizes) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override;
  Resizer* resizer() override { return this; }

 private:
  friend class VmdkReservation;

  template <class T>
  Result<T> Named(Result<T> result) const {
    return result.has_value() ? std::move(result) : std::move(result).WithPrefix(name_);
  }
  Result<> CheckInside(Range want) const;
  DiskExtent& ExtentAt(uint64_t guest);
  Result<size_t> MapAll(Range want, std::span<Extent> out, bool may_read);
  Result<uint64_t> MapOne(DiskExtent& extent, Range part, ExtentList& list, bool may_read);
  Result<uint64_t> MapFlat(const DiskExtent& extent, Range part, ExtentList& list, bool may_read);

  // vmdk_write.cc
  Result<> CheckWritable(Range want);
  Result<> CheckAccess(const DiskExtent& extent) const;
  Result<> BeginWriting();
  Result<> WriteDescriptor(const std::string& text);
  Result<> FlushIfCrowded();
  RangeLock::Guard LockGrains(const DiskExtent& extent, Range part);
  Result<std::unique_ptr<Reservation>> ReserveSome(Range want);
  Result<std::unique_ptr<Reservation>> ReserveStream(Range units, std::span<const uint32_t> sizes);
  Result<> PlanFlat(VmdkReservation& reservation, Range part);
  Result<> PlanSparse(VmdkReservation& reservation, Range part);
  void PlanGrain(VmdkReservation& reservation, Range part, const Grain& old, uint64_t host,
                 bool fresh, bool zeroed);
  Result<Range> DiscardFlat(DiskExtent& extent, Range part, Kind leave);
  Result<Range> DiscardSparse(DiskExtent& extent, Range part, Kind leave);

  // vmdk_resize.cc
  Result<> Resize(uint64_t size, Preallocation preallocation) override;
  Result<> ResizeTo(uint64_t size, Preallocation preallocation);
  Result<> CheckResize(uint64_t size, Preallocation preallocation) const;
  Result<> ResizeSparse(DiskExtent& extent, uint64_t length, const std::string& text);
  Result<> ResizeFlat(DiskExtent& extent, uint64_t length, const std::string& text,
                      Preallocation preallocation);
  Result<> SwitchEmbedded(SparseExtent& sparse, SparseGeometry next);

  Parts p_;
  const std::string name_;
  RangeLock ranges_;
  Mutex begin_mutex_;  // guards the descriptor until writing_
  std::atomic<bool> writing_{false};
};

// Everything but the layer itself. `to_check`: damage that keeps writers away is no matter, since
// nothing is going to be written through the extents. `file` outlives it.
Result<VmdkLayer::Parts> OpenParts(Store& file, const OpenOptions& options, bool to_check);

// What Reserve and ReservePacked hand out. Filled in by the layer's planning.
class VmdkReservation final : public Reservation {
 public:
  VmdkReservation(DiskExtent& extent, RangeLock::Guard guard)
      : extent_(extent), guard_(std::move(guard)) {}
  ~VmdkReservation() override;

  Range range() const override { return range_; }
  std::span<const Extent> target() const override { return target_; }
  std::span<const Range> fill() const override { return fill_; }
  Result<> Publish() override;

 private:
  friend class VmdkLayer;

  void AddTarget(const Extent& extent);
  void AddFill(Range range);

  DiskExtent& extent_;
  const RangeLock::Guard guard_;
  Range range_;
  std::vector<Extent> target_;
  std::vector<Range> fill_;
  SparseExtent::Tables tables_;  // whose entries Publish changes; they stay in memory for that
  std::vector<SparseExtent::Update> updates_;
  std::vector<SparseExtent::Run> fresh_;  // to be given back if this is dropped
  bool streamed_ = false;                 // target_ is grains of a stream
  bool published_ = false;
};

}  // namespace platter::vmdk
