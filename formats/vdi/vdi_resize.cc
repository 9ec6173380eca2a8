// Resize. Exclusive: cow/Disk keeps everybody else out. The step that decides is always one write
// of the header's sector: before it the image has the old size, after it the new one.
//
// A map that does not fit in front of the host blocks any more gets the place of the first of them.
// Those move behind the last one, as a flush would write it. The new map is then written where they
// were, numbering all blocks from their new beginning, and the header changes everything at once.
// Version 0 has no fields for the places, so there only what fits is possible.
#include <algorithm>
#include <mutex>
#include <utility>

#include "formats/preallocate.h"
#include "formats/vdi/vdi_layer.h"

namespace platter::vdi {

namespace {
constexpr uint64_t kPiece = kMiB;  // bytes of map or zeros at a time

// `count` entries from `first` on that name nothing.
Result<> WriteFreeEntries(Store& file, uint64_t map_offset, uint64_t first, uint64_t count) {
  std::vector<std::byte> piece(std::min(count * 4, kPiece), std::byte{0xff});
  for (uint64_t at = first * 4; at < (first + count) * 4; at += piece.size()) {
    auto part = ConstBytes(piece).first(std::min<uint64_t>(piece.size(), (first + count) * 4 - at));
    TRY_AS("block map", file.Write(map_offset + at, part));
  }
  return {};
}
}  // namespace

Result<> VdiLayer::Resize(uint64_t size, Preallocation preallocation) {
  return Named(ResizeTo(size, preallocation).WithPrefix("resizing"));
}

Result<> VdiLayer::ResizeTo(uint64_t size, Preallocation preallocation) {
  if (!info_.writable) return Fail(Code::kReadOnly, "opened for reading");
  if (BlocksFor(size, header_.block_size) >= kDiscarded || size >> 63 != 0) {
    return Fail(Code::kOutOfRange, "{} bytes are more than {} blocks of {} bytes", size, kDiscarded,
                header_.block_size);
  }
  if (preallocation != Preallocation::kOff && size < info_.size) {
    return Fail(Code::kUnsupported, "preallocation when shrinking");
  }
  if (preallocation != Preallocation::kOff && header_.differencing()) {
    return Fail(Code::kUnsupported, "preallocation would hide what the parent holds");
  }
  if (size == info_.size) return {};
  TRY(BeginWriting());
  TRY(Flush());
  if (size > info_.size) return Grow(size, preallocation);
  Header next = header_;
  next.size = size;
  next.blocks = static_cast<uint32_t>(BlocksFor(size, header_.block_size));
  // In version 0 the blocks begin where the map ends, so the map stays as long as it is.
  if (header_.major == 0) next.blocks = header_.blocks;
  return Adopt(next);
}

Result<> VdiLayer::Grow(uint64_t size, Preallocation preallocation) {
  const auto old_blocks = static_cast<uint32_t>(BlocksFor(info_.size, header_.block_size));
  TRY(ZeroTail());
  Header next = header_;
  next.size = size;
  next.blocks = static_cast<uint32_t>(
      std::max<uint64_t>(BlocksFor(size, header_.block_size), header_.blocks));
  // Entries past the disk's end may say anything.
  TRY(DropEntries(old_blocks, header_.blocks));
  if (next.blocks > header_.blocks) TRY(ExtendMap(next));
  TRY(Adopt(next));
  if (fixed() && preallocation == Preallocation::kOff) preallocation = Preallocation::kMetadata;
  return preallocation == Preallocation::kOff ? Result<>() : Preallocate(old_blocks, preallocation);
}

// The bytes past the disk's end in its last block, which are going to be seen.
Result<> VdiLayer::ZeroTail() {
  const uint64_t unit = header_.block_size, inside = info_.size % unit;
  if (inside == 0) return {};
  TableCache::Ref slice = TRY(LoadSlice(info_.size - 1));
  const uint32_t entry = ReadEntries(slice, {info_.size - 1, 1})[0];
  if (!IsHostBlock(entry)) return {};
  TRY(CheckKnown(BlockOf(info_.size - 1), entry));
  TRY(file_->Zero({header_.HostBlock(entry).offset + inside, unit - inside}, false));
  return file_->Sync();
}

// Blocks [first, end) name nothing.
Result<> VdiLayer::DropEntries(uint32_t first, uint32_t end) {
  if (first >= end) return {};
  return WriteFreeEntries(*file_, header_.map_offset, first, end - first);
}

// A longer map for `next`, which gets its place; nothing that the header on disk names changes.
Result<> VdiLayer::ExtendMap(Header& next) {
  const uint64_t here = header_.map_offset;
  if (here + next.map_bytes() <= header_.data_offset && header_.major > 0) {
    TRY(WriteFreeEntries(*file_, here, header_.blocks, next.blocks - header_.blocks));
    return file_->Sync();
  }
  if (header_.major == 0) {
    return Fail(Code::kUnsupported, "version 0 has no room for more than {} blocks: convert it",
                header_.blocks);
  }
  return MoveMap(next);
}

Result<> VdiLayer::MoveMap(Header& next) {
  const uint64_t before = RoundUp(header_.end(), kSector), bytes = next.map_bytes();
  uint32_t vacated = 0;
  if (before + bytes <= header_.map_offset) {
    next.map_offset = before;
  } else {
    next.map_offset = RoundUp(header_.data_offset, kSector);
    uint64_t count = DivideUp(next.map_offset + bytes - header_.data_offset, header_.stride());
    next.data_offset = header_.data_offset + count * header_.stride();
    if (next.data_offset > UINT32_MAX) {
      return Fail(Code::kOutOfRange, "the block map would end at {:#x}, past what VDI can name",
                  next.data_offset);
    }
    vacated = static_cast<uint32_t>(count);
    TRY(VacateFirst(vacated));
  }
  std::vector<le32> piece;
  TRY(ReadMap(*file_, header_, [&](uint32_t first, std::span<const le32> entries) -> Result<> {
    piece.assign(entries.begin(), entries.end());
    for (le32& entry : piece) {
      if (IsHostBlock(entry)) entry = entry - vacated;
    }
    return file_->Write(next.map_offset + uint64_t{first} * 4, std::as_bytes(std::span(piece)));
  }));
  TRY(WriteFreeEntries(*file_, next.map_offset, header_.blocks, next.blocks - header_.blocks));
  next.allocated = std::max(allocator_->end(), vacated) - vacated;
  return file_->Sync();
}

// Moves what is in the first `blocks` host blocks behind the last one. Afterwards no entry on disk
// names them.
Result<> VdiLayer::VacateFirst(uint32_t blocks) {
  std::vector<Update> moves;  // with the entry as it is
  TRY(ReadMap(*file_, header_, [&](uint32_t first, std::span<const le32> entries) -> Result<> {
    for (size_t i = 0; i < entries.size(); ++i) {
      if (entries[i] < blocks) moves.push_back({static_cast<uint32_t>(first + i), entries[i]});
    }
    return {};
  }));
  for (const Update& move : moves) {
    const uint32_t to = TRY(allocator_->AppendOne(blocks));
    TRY(CopyBlock(*file_, header_, move.entry, to));
    TableCache::Ref slice = TRY(map_->table.Get(SliceOf(move.block)));
    const Update update{move.block, to};
    allocator_->Retire(move.entry, WriteEntries(slice, std::span(&update, 1)));
  }
  return Flush();
}

// The header becomes `next`, and everything that was made from the old one is made anew.
Result<> VdiLayer::Adopt(const Header& next) {
  std::lock_guard flush(flush_mutex_);
  TRY(file_->Sync());
  TRY(WriteHeaderLocked(next));
  TRY(file_->Sync());
  header_ = next;
  info_.size = next.size;
  {
    std::lock_guard lock(map_mutex_);
    map_ = std::make_unique<MapCache>(*file_, header_);
  }
  allocator_ = std::make_unique<Allocator>(*file_, pins_);
  return allocator_->Open(header_);
}

// Host blocks for all blocks from `first` on that have none; the disk is the new one already.
Result<> VdiLayer::Preallocate(uint32_t first, Preallocation preallocation) {
  for (uint64_t at = uint64_t{first} * header_.block_size; at < info_.size;) {
    TRY(FlushIfCrowded());
    TableCache::Ref slice = TRY(LoadSlice(at));
    const auto left = static_cast<uint32_t>(DivideUp(SliceEnd(at) - at, header_.block_size));
    const Run run = TRY(allocator_->Allocate(left));
    std::vector<Update> updates;
    for (uint32_t i = 0; i < run.count; ++i) {
      const Range host = header_.HostBlock(run.first + i);
      if (!run.zeroed) TRY(file_->Zero(host, false));
      TRY(PreallocateBytes(*file_, host, preallocation));
      updates.push_back({BlockOf(at) + i, run.first + i});
    }
    WriteEntries(slice, updates);
    at += uint64_t{run.count} * header_.block_size;
  }
  return Flush();
}

}  // namespace platter::vdi
