// Construction, the first write, flushing, and the end. The essay is in vdi_layer.h.
#include "formats/vdi/vdi_layer.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"

namespace platter::vdi {

namespace {
constexpr size_t kMostDirty = 8 * kMiB;      // bytes of map slices
constexpr uint64_t kMostMoved = 256 * kMiB;  // bytes of blocks moved into holes at the end
}  // namespace

VdiLayer::VdiLayer(Parts parts)
    : file_(std::move(parts.file)),
      name_(fmt::format("vdi '{}'", file_->name())),
      info_only_(parts.info_only),
      fresh_(parts.fresh),
      info_(std::move(parts.info)),
      header_(std::move(parts.header)),
      map_(std::make_unique<MapCache>(*file_, header_)) {}

VdiLayer::~VdiLayer() { (void)Close(); }

Result<> VdiLayer::Prepare() {
  const uint64_t end = TRY(file_->Size());
  if (!FitsIn(header_.map_offset, header_.map_bytes(), end)) {
    return Fail(Code::kCorrupt,
                "the block map ({} entries at {:#x}) reaches past the end of the file ({:#x})",
                header_.blocks, header_.map_offset, end);
  }
  data_end_ = end;
  if (!info_.writable) return {};
  allocator_ = std::make_unique<Allocator>(*file_, pins_);
  return allocator_->Open(header_);
}

Result<> VdiLayer::CheckInside(Range want) const {
  if (info_only_) return Fail(Code::kRefused, "opened for information only");
  if (!want.empty() && FitsIn(want.offset, want.length, info_.size)) return {};
  return Fail(Code::kOutOfRange, "{:#x}+{:#x} is not inside the disk of {:#x} bytes", want.offset,
              want.length, info_.size);
}

// What every change begins with. No lock is held.
Result<> VdiLayer::CheckWritable(Range want) {
  if (!info_.writable) return Fail(Code::kReadOnly, "opened for reading");
  TRY(CheckInside(want));
  TRY(BeginWriting());
  return FlushIfCrowded();
}

Result<> VdiLayer::BeginWriting() {
  if (writing_.load(std::memory_order_acquire)) return {};
  std::lock_guard flush(flush_mutex_);
  if (writing_) return {};
  if (!fresh_) {
    Header header = header_;
    header.modification = MakeImageId({}, "modification");
    TRY(WriteHeaderLocked(header));
    TRY(file_->Sync());
  }
  writing_.store(true, std::memory_order_release);
  return {};
}

// No Sync. Under flush_mutex_.
Result<> VdiLayer::WriteHeaderLocked(const Header& header) {
  TRY_AS("header", file_->Write(0, ConstBytes(BuildHeader(header))));
  // Only these change while others look at the rest.
  header_.allocated = header.allocated;
  header_.modification = header.modification;
  return {};
}

Result<> VdiLayer::Flush() {
  if (!writing_.load(std::memory_order_acquire)) return {};
  std::lock_guard flush(flush_mutex_);
  return Named(FlushLocked());
}

// No lock is held, but maybe ranges.
Result<> VdiLayer::FlushIfCrowded() {
  auto crowded = [&] { return map_->table.dirty_bytes() > kMostDirty || allocator_->crowded(); };
  if (!crowded()) return {};
  std::lock_guard flush(flush_mutex_);
  // Somebody may have done it while we waited.
  return crowded() ? FlushLocked() : Result<>();
}

// Under flush_mutex_.
Result<> VdiLayer::FlushLocked() {
  uint64_t generation = 0;
  std::vector<TableCache::Piece> pieces;
  {
    std::lock_guard lock(map_mutex_);
    generation = ++generation_;
    pieces = map_->table.TakeDirty();
  }
  auto write = [&]() -> Result<> {
    // Asked after the entries were taken: what they name is counted.
    if (uint32_t end = allocator_->end(); end > header_.allocated) {
      Header header = header_;
      header.allocated = end;
      TRY(WriteHeaderLocked(header));
    }
    TRY(file_->Sync());
    if (pieces.empty()) return {};
    for (const TableCache::Piece& piece : pieces) {
      TRY_AS("block map", map_->store.Write(piece.offset, ConstBytes(piece.bytes)));
    }
    return file_->Sync();
  };
  Result<> written = write();
  {
    std::lock_guard lock(map_mutex_);
    if (written.has_value()) {
      map_->table.Written(pieces);
    } else {
      map_->table.PutBack(pieces);
    }
  }
  TRY(std::move(written));
  allocator_->Settle(generation);
  return {};
}

Result<> VdiLayer::Close() {
  if (!writing_) return {};
  TRY(Flush());
  std::lock_guard flush(flush_mutex_);
  TRY(FillHoles());
  const uint32_t end = allocator_->end();
  if (header_.allocated != end) {
    Header header = header_;
    header.allocated = end;
    TRY(WriteHeaderLocked(header));
    TRY(file_->Sync());
  }
  return allocator_->Cut();
}

// Nobody else uses the image, and everything is written. Under flush_mutex_.
Result<> VdiLayer::FillHoles() {
  // A block that is still pinned or whose unlinking is not durable is not known as a hole: it stays
  // one, for check to find.
  allocator_->DropLastHoles();
  const std::vector<Run> holes = allocator_->Holes();
  uint64_t free = 0;
  for (const Run& hole : holes) free += hole.count;
  if (free == 0) return {};
  const uint32_t used = allocator_->end() - static_cast<uint32_t>(free);
  uint64_t moved = allocator_->end() - used;
  for (const Run& hole : holes) {
    if (hole.end() > used) moved -= hole.end() - std::max(hole.first, used);
  }
  if (moved > kMostMoved / header_.stride()) return {};
  TRY(MoveIntoHoles(*file_, header_, holes, used));
  allocator_->Filled(used);
  return {};
}

}  // namespace platter::vdi
