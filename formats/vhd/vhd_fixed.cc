#include "formats/vhd/vhd_fixed.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "formats/preallocate.h"
#include "formats/vhd/vhd_create.h"
#include "io/extent_list.h"
#include "io/in_place.h"

namespace platter::vhd {

FixedVhd::FixedVhd(std::unique_ptr<Store> store, Footer footer, Info info)
    : store_(std::move(store)),
      resizable_(info.writable && !store_->caps().block_device),
      footer_(std::move(footer)),
      info_(std::move(info)) {}

Result<> FixedVhd::CheckInside(Range want) const {
  if (!want.empty() && FitsIn(want.offset, want.length, info_.size)) return {};
  return Fail(Code::kOutOfRange, "vpc '{}': {} bytes at {} are outside the disk of {} bytes",
              store_->name(), want.length, want.offset, info_.size);
}

Result<> FixedVhd::CheckWritable() const {
  if (info_.writable) return {};
  return Fail(Code::kReadOnly, "vpc '{}' is open for reading", store_->name());
}

Extent FixedVhd::DataAt(Range guest) const {
  return Extent{.guest = guest,
                .kind = Kind::kData,
                .writable = info_.writable,
                .store = store_.get(),
                .host = guest};
}

Result<size_t> FixedVhd::Map(Range want, std::span<Extent> out) {
  TRY(CheckInside(want));
  ExtentList list(out);
  while (!want.empty()) {
    Store::Run run = TRY(store_->FindRun(want.offset));
    Range guest{want.offset, std::min(run.length, want.length)};
    if (!list.Add(run.data ? DataAt(guest) : Extent{.guest = guest, .kind = Kind::kHole})) break;
    want = Range::FromTo(guest.end(), want.end());
  }
  return list.size();
}

// As data, without a system call: a hole of the file reads as zeros, too.
size_t FixedVhd::TryMap(Range want, std::span<Extent> out) {
  if (!CheckInside(want)) return 0;
  out[0] = DataAt(want);
  return 1;
}

Result<std::unique_ptr<Reservation>> FixedVhd::Reserve(Range want) {
  TRY(CheckWritable());
  TRY(CheckInside(want));
  return std::make_unique<InPlace>(std::vector{DataAt(want)});
}

Result<Range> FixedVhd::Discard(Range want, Kind leave) {
  CHECK(leave != Kind::kData);
  TRY(CheckWritable());
  TRY(CheckInside(want));
  // Where the store cannot give space back, a trim would write zeros all over the disk.
  bool unmap = leave != Kind::kZero;
  if (unmap && !store_->caps().punch) return Range{want.offset, 0};
  TRY(store_->Zero(want, unmap));
  return want;
}

// The last footer of the file counts, and decides in one step: cutting the file off behind the new
// one makes the disk smaller. A file that becomes longer first ends with a footer that still says
// the old size, until what is between reads as zeros. (Where a file system makes a file longer
// before it has what was appended, a crash leaves no footer at all; none that we know does.)
Result<> FixedVhd::Resize(uint64_t size, Preallocation preallocation) {
  if (preallocation == Preallocation::kMetadata) {
    return Fail(Code::kUnsupported, "a fixed VHD has no metadata to preallocate");
  }
  size = RoundUp(size, kSector);
  TRY(CheckSize(size));
  const uint64_t old = info_.size, end = TRY(store_->Size());
  Footer footer = footer_;
  footer.current_size = size;
  footer.geometry = GeometryOf(size);
  MarkExact(footer);
  const DiskFooter before = EncodeFooter(footer_), after = EncodeFooter(footer);
  if (size + kSector > end) {
    TRY(store_->Write(size, AsBytes(before)));
    TRY(store_->Sync());
  }
  if (size > old) {
    const Range added = Range::FromTo(old, size);
    TRY(store_->Zero(added.Intersect({0, end}), /*may_unmap=*/false));
    TRY(PreallocateBytes(*store_, added, preallocation));
    TRY(store_->Sync());
  }
  TRY(store_->Write(size, AsBytes(after)));
  TRY(store_->Sync());
  TRY(store_->Resize(size + kSector));
  footer_ = std::move(footer);
  info_.size = size;
  return store_->Sync();
}

}  // namespace platter::vhd
