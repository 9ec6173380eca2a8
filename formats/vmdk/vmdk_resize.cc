// Resize: the last extent becomes longer or shorter. Exclusive: cow/Disk keeps everybody else out.
//
// What has the size, and which write decides:
//
//   a sparse extent with the descriptor in it   its header; where the text says more or less than
//                                               that, the header counts
//   a descriptor file                           its text. Extents may be longer than it says, so
//                                               they grow before it and shrink after it.
//
// Text cannot be written over in one step. An embedded descriptor is first written to the end of
// the file; the header that names that place has the new size as well. Then it is written at its
// own place, and named there again. In a descriptor file the new text has to differ from the old
// one in one sector.
#include <algorithm>
#include <utility>

#include "formats/preallocate.h"
#include "formats/vmdk/vmdk_layer.h"
#include "formats/vmdk/vmdk_plan.h"

namespace platter::vmdk {

Result<> VmdkLayer::Resize(uint64_t size, Preallocation preallocation) {
  return Named(ResizeTo(size, preallocation).WithPrefix("resizing"));
}

Result<> VmdkLayer::ResizeTo(uint64_t size, Preallocation preallocation) {
  if (!p_.info.writable) return Fail(Code::kReadOnly, "opened for reading");
  if (size > INT64_MAX - kSector) {
    return Fail(Code::kOutOfRange, "a disk of {} bytes is over 8 EiB", size);
  }
  size = RoundUp(size, kSector);
  if (size == p_.info.size) return {};
  TRY(CheckResize(size, preallocation));
  TRY(BeginWriting());
  TRY(Flush());
  DiskExtent& last = p_.extents.back();
  const uint64_t length = size - last.guest.offset;
  std::string text;
  if (last.store != p_.file) text = TRY(WithLastExtentInPlace(p_.descriptor, length / kSector));
  auto done = last.sparse ? ResizeSparse(last, length, text)
                          : ResizeFlat(last, length, text, preallocation);
  if (!done.has_value()) {
    // Which size the image has now, and which tables count, is not known.
    p_.info.writable = false;
    return done;
  }
  last.guest.length = length;
  last.line.sectors = length / kSector;
  p_.info.size = size;
  return {};
}

// Everything that can refuse.
Result<> VmdkLayer::CheckResize(uint64_t size, Preallocation preallocation) const {
  if (p_.info.only_packed) {
    return Fail(Code::kUnsupported, "a streamOptimized image has one size: convert it");
  }
  if (p_.extents.empty()) return Fail(Code::kUnsupported, "there is no extent to be resized");
  const DiskExtent& last = p_.extents.back();
  TRY(CheckAccess(last));
  const bool split = p_.descriptor.create_type.starts_with("twoGbMaxExtent");
  const uint64_t most = split ? kSplitSectors * kSector : last.sparse ? kMostSparse : INT64_MAX;
  if (size < last.guest.offset || (size == last.guest.offset && p_.extents.size() > 1)) {
    return Fail(Code::kUnsupported,
                "only the last extent, from guest offset {} on, can become shorter: convert the "
                "image",
                last.guest.offset);
  }
  if (size - last.guest.offset > most) {
    return Fail(Code::kUnsupported,
                "the last extent, from guest offset {} on, would be longer than the {} bytes that "
                "it can have: convert the image",
                last.guest.offset, most);
  }
  if (last.sparse) {
    if (preallocation == Preallocation::kOff) return {};
    return Fail(Code::kUnsupported, "preallocation: sparse extents have what is in them only");
  }
  if (preallocation == Preallocation::kMetadata) {
    return Fail(Code::kUnsupported, "a flat extent has no metadata to preallocate");
  }
  const auto shared = std::ranges::count(p_.extents, last.store, &DiskExtent::store);
  if (last.store->caps().block_device || shared > 1) {
    return Fail(Code::kUnsupported, "the last extent is on a device, or shares its file");
  }
  return {};
}

Result<> VmdkLayer::ResizeSparse(DiskExtent& extent, uint64_t length, const std::string& text) {
  SparseExtent& sparse = *extent.sparse;
  const uint64_t old = extent.guest.length;
  SparseGeometry next = sparse.geometry();
  if (length > old) {
    next = TRY(sparse.Extend(old, length));
  } else {
    // Whole grains past the new end; what the last one holds there is cleared before it shows.
    for (uint64_t at = RoundUp(length, next.grain); at < old;) {
      Range part{extent.guest.offset + at, old - at};
      at = TRY(DiscardSparse(extent, part, Kind::kParent)).end() - extent.guest.offset;
      TRY(FlushIfCrowded());
    }
    TRY(sparse.Flush());
    next.capacity = length;
    next.directory_entries = DivideUp(length, next.table_span());
  }
  if (extent.store == p_.file) return SwitchEmbedded(sparse, std::move(next));
  if (length < old) TRY(WriteDescriptor(text));
  TRY(sparse.Adopt(next));
  return length > old ? WriteDescriptor(text) : Result<>();
}

Result<> VmdkLayer::SwitchEmbedded(SparseExtent& sparse, SparseGeometry next) {
  if (p_.embedded.empty()) return sparse.Adopt(next);
  const std::string text = WithLastExtent(p_.descriptor, next.capacity / kSector);
  const Range home = p_.embedded;
  const Range aside{TRY(sparse.TakeEnd(home.length)), home.length};
  p_.embedded = next.descriptor = aside;
  TRY_AS("descriptor", WriteDescriptor(text));
  TRY(sparse.Adopt(next));
  p_.embedded = next.descriptor = home;
  TRY_AS("descriptor", WriteDescriptor(text));
  TRY(sparse.Adopt(next));
  return sparse.GiveBackEnd(aside);
}

Result<> VmdkLayer::ResizeFlat(DiskExtent& extent, uint64_t length, const std::string& text,
                               Preallocation preallocation) {
  Store& file = *extent.store;
  const uint64_t old_end = extent.offset + extent.guest.length, end = extent.offset + length;
  const uint64_t size = TRY(file.Size());
  if (end > old_end) {
    // The file may be longer than the extent, by what nobody has seen.
    const Range there = Range{old_end, end - old_end}.Intersect({0, size});
    if (!there.empty()) TRY(file.Zero(there, /*may_unmap=*/true));
    if (size < end) TRY(file.Resize(end));
    TRY(PreallocateBytes(file, Range::FromTo(old_end, end), preallocation));
    TRY(file.Sync());
    TRY(WriteDescriptor(text));
  } else {
    TRY(WriteDescriptor(text));
    if (size == old_end) TRY(file.Resize(end));
    TRY(file.Sync());
  }
  extent.end = end;
  return {};
}

}  // namespace platter::vmdk
