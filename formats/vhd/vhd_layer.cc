// Construction, the first write, flushing, and the end. The essay is in vhd_layer.h.
#include "formats/vhd/vhd_layer.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "io/buffer.h"

namespace platter::vhd {

namespace {

constexpr uint32_t kMostSlice = 64 * kKiB;
constexpr size_t kTableCacheBytes = 4 * kMiB, kBitmapCacheBytes = 8 * kMiB;
constexpr size_t kMostDirty = 4 * kMiB;         // bytes of bitmaps and table
constexpr size_t kMostUnits = 8 * 1024 * 1024;  // blocks in use of an image that is written
constexpr uint64_t kMostBitmap = kMostBlock / kSector / 8;
static_assert(kMostBitmap <= kMostSlice);

}  // namespace

uint32_t SliceBytes(const Header& header) {
  return static_cast<uint32_t>(std::gcd(header.table().length, uint64_t{kMostSlice}));
}

std::unique_ptr<TableCache> MakeTableCache(Store& store, const Header& header) {
  return std::make_unique<TableCache>(store, "block allocation table", SliceBytes(header),
                                      kTableCacheBytes);
}

VhdLayer::VhdLayer(std::unique_ptr<Store> store, Image image, Info info)
    : store_(std::move(store)),
      name_(fmt::format("vpc '{}'", store_->name())),
      image_(std::move(image)),
      info_(std::move(info)),
      end_(image_.data_end()),
      allocator_(*store_, pins_, image_.header.bitmap_size(), image_.header.unit()),
      slice_bytes_(SliceBytes(image_.header)),
      table_(MakeTableCache(*store_, image_.header)),
      bitmaps_(*store_, "sector bitmap", image_.header.bitmap_size(), kBitmapCacheBytes) {}

VhdLayer::~VhdLayer() { Close(); }

void VhdLayer::Close() {
  if (!writing_) return;
  if (!Flush().has_value()) return;  // whoever wants to know has called Flush
  std::lock_guard flush(flush_mutex_);
  allocator_.Settle(durable_);
  allocator_.Trim();
  if (allocator_.PutFooter(EncodeFooter(image_.footer)).has_value()) {
    (void)store_->Sync().has_value();
  }
}

Result<> VhdLayer::CheckInside(Range want) const {
  if (!want.empty() && FitsIn(want.offset, want.length, info_.size)) return {};
  return Fail(Code::kOutOfRange, "{} bytes at {} are outside the disk of {} bytes", want.length,
              want.offset, info_.size);
}

Result<> VhdLayer::CheckWritable(Range want) {
  if (!info_.writable) return Fail(Code::kReadOnly, "it is open for reading");
  TRY(CheckInside(want));
  TRY(BeginWriting());
  return FlushIfCrowded();
}

// ---- The first write ----

Result<Survey> ReadTable(Store& store, const Image& image) {
  Survey survey;
  const uint64_t blocks = image.header.table_entries;
  Buffer buffer(kMostSlice);
  for (uint64_t first = 0; first < blocks;) {
    uint64_t count = std::min<uint64_t>(blocks - first, kMostSlice / 4);
    Bytes piece = buffer.bytes().first(count * 4);
    TRY_AS("block allocation table", store.Read(image.header.table_offset + first * 4, piece));
    for (uint64_t i = 0; i < count; ++i) {
      uint32_t entry = *LoadAt<be32>(piece, i * 4);
      if (entry == kUnused) continue;
      if (survey.units.size() == kMostUnits) {
        return Fail(Code::kUnsupported, "more than {} blocks are in use", kMostUnits);
      }
      survey.units.push_back({entry, static_cast<uint32_t>(first + i)});
    }
    first += count;
  }
  std::ranges::sort(survey.units, {},
                    [](const Survey::Unit& unit) { return std::pair(unit.sector, unit.block); });
  return survey;
}

Result<> VhdLayer::BeginWriting() {
  if (writing_.load(std::memory_order_acquire)) return {};
  std::lock_guard flush(flush_mutex_);
  return writing_ ? Result<>() : BeginWritingLocked();
}

// Under flush_mutex_.
Result<> VhdLayer::BeginWritingLocked() {
  Survey survey = TRY(ReadTable(*store_, image_));
  const uint64_t file_size = TRY(store_->Size()), limit = image_.tail.value_or(file_size);
  uint64_t end = 0;
  std::vector<uint64_t> starts;
  for (const Part& part : image_.parts) end = std::max(end, part.range.end());
  bool plain = true;  // nothing but blocks behind the first one
  for (const Survey::Unit& unit : survey.units) {
    uint64_t start = unit.sector * kSector;
    TRY(CheckUnit(start, unit.block, limit));
    // What was cut off would read as zeros, or as the old footer, once the file is longer.
    if (UnitRange(image_, start, unit.block).end() > limit) {
      return Fail(Code::kCorrupt,
                  "block {}: its place at {:#x} reaches past the end of the data ({:#x}); what is "
                  "left can be read",
                  unit.block, start, limit);
    }
    if (!starts.empty() && start < starts.back() + image_.header.unit()) {
      return Fail(Code::kCorrupt,
                  "block {}: its place at {:#x} overlaps another block's at {:#x}; nothing can be "
                  "written before that is repaired",
                  unit.block, start, starts.back());
    }
    starts.push_back(start);
  }
  for (const Part& part : image_.parts) {
    plain = plain && (starts.empty() || part.range.offset < starts.front());
  }
  if (!starts.empty()) end = std::max(end, starts.back() + image_.header.unit());
  // What else may stand in front of the footer is left alone.
  if (image_.tail) end = std::max(end, RoundUp(*image_.tail, kSector));
  const bool footer = image_.tail == end && file_size == end + kSector;
  if (!image_.copy_good) {
    const DiskFooter copy = EncodeFooter(image_.footer);
    TRY_AS("copy of the footer", store_->Write(0, AsBytes(copy)));
    TRY(store_->Sync());
    image_.copy_good = true;
  }
  TRY(allocator_.Open(starts, end, footer, plain));
  writing_.store(true, std::memory_order_release);
  return {};
}

void EditBits(TableCache::Ref& bitmap, Range run, bool value) {
  uint64_t first = run.offset / 8, end = DivideUp(run.end(), 8);
  Bytes bytes = bitmap.Edit(Range::FromTo(first, end));
  SetBits(bytes, run.offset - first * 8, run.end() - first * 8, value);
}

// ---- Flush ----

Result<> VhdLayer::Flush() {
  if (!writing_.load(std::memory_order_acquire)) return {};
  std::lock_guard flush(flush_mutex_);
  return Named(FlushLocked());
}

// No lock is held, but maybe ranges.
Result<> VhdLayer::FlushIfCrowded() {
  auto crowded = [&] { return bitmaps_.dirty_bytes() + table_->dirty_bytes() > kMostDirty; };
  if (!crowded()) return {};
  std::lock_guard flush(flush_mutex_);
  // Somebody may have done it while we waited.
  return crowded() ? FlushLocked() : Result<>();
}

// Under flush_mutex_.
Result<> VhdLayer::FlushLocked() {
  std::vector<TableCache::Piece> bits, table;
  uint64_t generation = 0;
  {
    std::lock_guard lock(map_mutex_);
    generation = ++generation_;
    table = table_->TakeDirty();
    bits = bitmaps_.TakeDirty();
  }
  Result<> written = WriteTables(bits, table);
  {
    std::lock_guard lock(map_mutex_);
    if (written.has_value()) {
      table_->Written(table);
      bitmaps_.Written(bits);
    } else {
      table_->PutBack(table);
      bitmaps_.PutBack(bits);
    }
  }
  TRY(std::move(written));
  durable_ = generation;
  allocator_.Settle(durable_);
  return {};
}

Result<> VhdLayer::WriteTables(std::span<const TableCache::Piece> bits,
                               std::span<const TableCache::Piece> table) {
  if (!bits.empty()) TRY(store_->Sync());
  for (const TableCache::Piece& piece : bits) {
    TRY_AS("sector bitmap", store_->Write(piece.offset, piece.bytes));
  }
  TRY(allocator_.PutFooter(EncodeFooter(image_.footer)));
  TRY(store_->Sync());
  if (table.empty()) return {};
  for (const TableCache::Piece& piece : table) {
    TRY_AS("block allocation table", store_->Write(piece.offset, piece.bytes));
  }
  return store_->Sync();
}

}  // namespace platter::vhd
