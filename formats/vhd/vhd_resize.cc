// Resize. Both footers have the size; the one at the end counts, the copy stands in where there is
// none. They are written last and in one step, so that a crash leaves the old size or the new one:
//
//   growing    a larger table behind everything, Sync; the header's first sector, which names it,
//              Sync; zeros behind the old end of the disk; footers, Sync
//   shrinking  blocks past the new end are dropped, flush; footers, Sync
//
// The old table's place is never used again: some hundreds of KiB for a disk of terabytes.
#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"
#include "formats/vhd/vhd_create.h"
#include "formats/vhd/vhd_layer.h"

namespace platter::vhd {

Result<> VhdLayer::Resize(uint64_t size, Preallocation preallocation) {
  if (preallocation != Preallocation::kOff) {
    return Named(Result<>(Fail(Code::kUnsupported, "dynamic VHDs cannot be preallocated")));
  }
  size = RoundUp(size, kSector);
  TRY(Named(CheckSize(size)));
  TRY(Named(BeginWriting()));
  if (size == info_.size) return {};
  return Named(size > info_.size ? Grow(size) : Shrink(size));
}

Result<> VhdLayer::Grow(uint64_t size) {
  uint64_t entries = DivideUp(size, block_size());
  if (entries > image_.header.table_entries) TRY(GrowTable(entries));
  TRY(ForgetBeyond(image_.blocks(), entries));
  uint64_t old = info_.size, border = std::min(RoundUp(old, block_size()), size);
  if (border > old) TRY(ZeroTail(old, border));
  return WriteSize(size);
}

Result<> VhdLayer::Shrink(uint64_t size) {
  uint64_t first = RoundUp(size, block_size());
  for (uint64_t at = first; at < info_.size;) {
    // The disk ends before them, so it does not matter if the batmap calls them full.
    at = TRY(DropBlocks(Range::FromTo(at, info_.size), /*force=*/true)).end();
  }
  TRY(Flush());
  return WriteSize(size);
}

// Copies the table to the end of the file, with room for `entries`.
Result<> VhdLayer::GrowTable(uint64_t entries) {
  TRY(Flush());
  Header header = image_.header;
  header.table_entries = static_cast<uint32_t>(entries);
  header.table_offset = TRY(allocator_.AllocateEnd(header.table().length));
  const uint64_t old_bytes = image_.header.table_entries * uint64_t{4};
  std::vector<std::byte> piece;
  for (uint64_t at = 0; at < header.table().length; at += piece.size()) {
    piece.assign(std::min(kMiB, header.table().length - at), std::byte{0xff});
    uint64_t have = old_bytes > at ? std::min<uint64_t>(old_bytes - at, piece.size()) : 0;
    TRY(store_->Read(image_.header.table_offset + at, Bytes(piece).first(have)));
    TRY(store_->Write(header.table_offset + at, ConstBytes(piece)));
  }
  TRY(store_->Sync());
  DiskHeader disk = image_.disk_header;
  disk.table_offset = header.table_offset;
  disk.table_entries = header.table_entries;
  SealHeader(disk);
  TRY_AS("dynamic disk header",
         store_->Write(image_.footer.data_offset, AsBytes(disk).first(kSector)));
  TRY(store_->Sync());
  for (Part& part : image_.parts) {
    if (part.range.offset == image_.header.table_offset) part.range = header.table();
  }
  image_.header = header;
  image_.disk_header = disk;
  std::lock_guard lock(map_mutex_);
  slice_bytes_ = SliceBytes(header);
  table_ = MakeTableCache(*store_, header);
  return {};
}

// Entries past the end of the disk, as other programs may have left them, name nothing.
Result<> VhdLayer::ForgetBeyond(uint64_t first, uint64_t end) {
  for (uint64_t index = first; index < end; ++index) {
    TableCache::Ref slice = TRY(table_->Get(SliceOf(index)));
    std::lock_guard lock(map_mutex_);
    if (UnitAt(slice.bytes(), index)) StoreAt(slice.Edit({InSlice(index), 4}), 0, be32(kUnused));
  }
  std::lock_guard flush(flush_mutex_);
  return FlushLocked();
}

// What a block holds past the old end of the disk reads as zeros from now on.
Result<> VhdLayer::ZeroTail(uint64_t from, uint64_t to) {
  const uint64_t index = from / block_size();
  TableCache::Ref slice = TRY(table_->Get(SliceOf(index)));
  auto unit = UnitAt(slice.bytes(), index);
  if (!unit) return {};
  Range host{*unit + bitmap_size() + from % block_size(), to - from};
  TRY(store_->Zero(host.Intersect({0, FileEnd()}), /*may_unmap=*/false));
  return store_->Sync();
}

Result<> VhdLayer::WriteSize(uint64_t size) {
  image_.footer.current_size = size;
  image_.footer.geometry = GeometryOf(size);
  MarkExact(image_.footer);
  const DiskFooter footer = EncodeFooter(image_.footer);
  TRY_AS("copy of the footer", store_->Write(0, AsBytes(footer)));
  allocator_.FooterChanged();
  TRY(allocator_.PutFooter(footer));
  TRY(store_->Sync());
  image_.size = size;
  info_.size = size;
  return {};
}

}  // namespace platter::vhd
