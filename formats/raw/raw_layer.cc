#include "formats/raw/raw_layer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "formats/preallocate.h"
#include "io/in_place.h"

namespace platter {

Result<std::unique_ptr<Layer>> RawLayer::Open(Parts parts) {
  uint64_t size = TRY(parts.store->Size());
  if (size > INT64_MAX) {
    return Fail(Code::kOutOfRange, "'{}' has {} bytes, over 8 EiB", parts.store->name(), size);
  }
  return std::unique_ptr<Layer>(new RawLayer(std::move(parts), size));
}

RawLayer::RawLayer(Parts parts, uint64_t size)
    : store_(std::move(parts.store)),
      guard_(parts.guarded && parts.writable ? std::make_unique<HeadGuard>(*store_) : nullptr),
      resizable_(parts.writable && parts.resizable && !store_->caps().block_device) {
  info_.format = "raw";
  info_.size = size;
  info_.sector = parts.sector;
  info_.writable = parts.writable;
}

Result<> RawLayer::CheckInside(Range want) const {
  if (!want.empty() && FitsIn(want.offset, want.length, info_.size)) return {};
  return Fail(Code::kOutOfRange, "raw '{}': {} bytes at {} are outside the disk of {} bytes",
              store_->name(), want.length, want.offset, info_.size);
}

Extent RawLayer::DataAt(Range guest) const {
  Extent extent{.guest = guest,
                .kind = Kind::kData,
                .writable = info_.writable,
                .store = store_.get(),
                .host = guest};
  if (guard_) {
    uint64_t border = HeadGuard::NextBorder(guest.offset, info_.size);
    extent.guest = extent.host = guest.Intersect(Range::FromTo(guest.offset, border));
    if (HeadGuard::Covers(extent.guest, info_.size)) extent.store = guard_.get();
  }
  return extent;
}

Result<size_t> RawLayer::Map(Range want, std::span<Extent> out) {
  TRY(CheckInside(want));
  size_t count = 0;
  while (!want.empty()) {
    Store::Run run = TRY(store_->FindRun(want.offset));
    Range guest{want.offset, std::min(run.length, want.length)};
    Extent extent = run.data ? DataAt(guest) : Extent{.guest = guest, .kind = Kind::kHole};
    Extent* last = count > 0 ? &out[count - 1] : nullptr;
    if (last && last->kind == extent.kind && last->store == extent.store) {
      last->guest.length += extent.guest.length;
      last->host.length += extent.host.length;
    } else if (count < out.size()) {
      out[count++] = extent;
    } else {
      break;
    }
    want = Range::FromTo(extent.guest.end(), want.end());
  }
  return count;
}

size_t RawLayer::TryMap(Range want, std::span<Extent> out) {
  if (!CheckInside(want)) return 0;
  out[0] = DataAt(want);
  return 1;
}

Result<std::unique_ptr<Reservation>> RawLayer::Reserve(Range want) {
  if (!info_.writable) {
    return Fail(Code::kReadOnly, "raw '{}' is open for reading", store_->name());
  }
  TRY(CheckInside(want));
  std::vector<Extent> target;
  for (Range rest = want; !rest.empty();
       rest = Range::FromTo(target.back().guest.end(), rest.end())) {
    target.push_back(DataAt(rest));
  }
  return std::make_unique<InPlace>(std::move(target));
}

Result<Range> RawLayer::Discard(Range want, Kind leave) {
  CHECK(leave != Kind::kData);
  if (!info_.writable) {
    return Fail(Code::kReadOnly, "raw '{}' is open for reading", store_->name());
  }
  TRY(CheckInside(want));
  // Giving space back is a kindness: where the store cannot, writing zeros instead would make a
  // trim of a whole disk write the whole disk.
  bool unmap = leave != Kind::kZero;
  if (unmap && !store_->caps().punch) return Range{want.offset, 0};
  for (Range rest = want; !rest.empty();) {
    Extent part = DataAt(rest);
    TRY(part.store->Zero(part.host, unmap));
    rest = Range::FromTo(part.guest.end(), rest.end());
  }
  return want;
}

Result<> RawLayer::Resize(uint64_t size, Preallocation preallocation) {
  if (size > INT64_MAX) return Fail(Code::kOutOfRange, "a disk of {} bytes is over 8 EiB", size);
  uint64_t old_size = info_.size;
  if (preallocation == Preallocation::kMetadata) {
    return Fail(Code::kUnsupported,
                "raw has no metadata to preallocate; falloc and full are there");
  }
  TRY(guard_ ? guard_->Resize(size) : store_->Resize(size));
  info_.size = size;
  if (size > old_size) {
    TRY(PreallocateBytes(*store_, Range::FromTo(old_size, size), preallocation));
  }
  return store_->Sync();
}

}  // namespace platter
