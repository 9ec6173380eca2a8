// The operations; the essay is in the header.
#include "formats/qcow2/qcow2_bitmaps.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <set>

#include "base/check.h"

namespace platter::qcow2 {

namespace {

constexpr uint64_t kSmallestChoice = 4 * kKiB;  // bytes: of granularities that we choose

std::string Quoted(const std::string& name) { return fmt::format("bitmap '{}'", Printable(name)); }

}  // namespace

Qcow2Bitmaps::Qcow2Bitmaps(Qcow2Layer& layer, std::vector<Bitmap> bitmaps)
    : layer_(layer),
      bitmaps_(std::move(bitmaps)),
      directory_(layer.format_.bitmaps ? layer.format_.bitmaps->directory_offset : 0) {}

Result<> Qcow2Bitmaps::AddBitmap(const NewBitmap& bitmap) {
  return layer_.Named(Add(bitmap).WithPrefix("adding " + Quoted(bitmap.name)));
}
Result<> Qcow2Bitmaps::RemoveBitmap(const std::string& name) {
  return layer_.Named(Remove(name).WithPrefix("removing " + Quoted(name)));
}
Result<> Qcow2Bitmaps::ClearBitmap(const std::string& name) {
  return layer_.Named(Clear(name).WithPrefix("clearing " + Quoted(name)));
}
Result<> Qcow2Bitmaps::EnableBitmap(const std::string& name, bool enabled) {
  return layer_.Named(
      Enable(name, enabled).WithPrefix((enabled ? "enabling " : "disabling ") + Quoted(name)));
}
Result<> Qcow2Bitmaps::MergeBitmap(const std::string& name, Bitmapper& source,
                                   const std::string& from) {
  return layer_.Named(Merge(name, source, from).WithPrefix("merging into " + Quoted(name)));
}
Result<> Qcow2Bitmaps::VisitDirty(const std::string& name, Range within, const Visit& visit) {
  return layer_.Named(TellDirty(name, within, visit).WithPrefix(Quoted(name)));
}

// ---- The operations ----

Result<> Qcow2Bitmaps::Add(const NewBitmap& wanted) {
  Bitmap bitmap = TRY(Describe(wanted));
  TRY(Begin());
  std::vector<Range> fresh;
  std::vector<Bitmap> bitmaps = bitmaps_;
  Result<> placed = PlaceTable(bitmap, Table(EntriesFor(bitmap, layer_.info_.size)), fresh);
  if (!placed) {
    GiveBack(fresh);
    return placed;
  }
  bitmaps.push_back(std::move(bitmap));
  return SwitchTo(std::move(bitmaps), std::move(fresh), {});
}

Result<> Qcow2Bitmaps::Remove(const std::string& name) {
  const size_t index = TRY(Find(name));
  TRY(Begin());
  // Of a damaged table nothing is freed: what it names may be somebody else's.
  std::vector<Range> gone;
  if (auto table = LoadTable(bitmaps_[index])) {
    gone = SpaceOf(bitmaps_[index], *table);
  } else if (table.error().code() != Code::kCorrupt) {
    return std::unexpected(std::move(table.error()));
  }
  std::vector<Bitmap> bitmaps = bitmaps_;
  bitmaps.erase(bitmaps.begin() + static_cast<ptrdiff_t>(index));
  return SwitchTo(std::move(bitmaps), {}, gone);
}

Result<> Qcow2Bitmaps::Clear(const std::string& name) {
  TRY(FindTrusted(name));
  TRY(Begin());
  const size_t index = TRY(FindTrusted(name));
  const std::vector<Range> gone = SpaceOf(bitmaps_[index], TRY(LoadTable(bitmaps_[index])));
  std::vector<Bitmap> bitmaps = bitmaps_;
  std::vector<Range> fresh;
  Result<> placed = PlaceTable(bitmaps[index], Table(bitmaps[index].table_size), fresh);
  if (!placed) {
    GiveBack(fresh);
    return placed;
  }
  return SwitchTo(std::move(bitmaps), std::move(fresh), gone);
}

Result<> Qcow2Bitmaps::Enable(const std::string& name, bool enabled) {
  TRY(FindTrusted(name));
  TRY(Begin());
  const size_t index = TRY(FindTrusted(name));
  Bitmap& bitmap = bitmaps_[index];
  if (bitmap.info.enabled == enabled) return {};
  TRY(WriteFlags(index, enabled ? bitmap.flags | kBitmapAuto : bitmap.flags & ~kBitmapAuto));
  TRY(layer_.file_->Sync());
  bitmap.info.enabled = layer_.info_.bitmaps[index].enabled = enabled;
  return {};
}

Result<> Qcow2Bitmaps::Merge(const std::string& name, Bitmapper& source, const std::string& from) {
  TRY(FindTrusted(name));
  TRY(Begin());
  const size_t index = TRY(FindTrusted(name));
  Bitmap bitmap = bitmaps_[index];
  Table table = TRY(LoadTable(bitmap));
  std::vector<Range> fresh, gone;
  const DirtyPages shape(bitmap.granularity_bits, page_bytes());
  // One page at a time: ranges come in ascending order.
  uint64_t page = 0;
  std::vector<std::byte> bits(page_bytes());
  Result<> merged;
  auto put = [&]() -> bool {
    merged = MergePage(table, page, bits, fresh, gone);
    std::ranges::fill(bits, std::byte{0});
    return merged.has_value();
  };
  Result<> read = source.VisitDirty(from, {0, layer_.info_.size}, [&](Range dirty) {
    while (!dirty.empty()) {
      const uint64_t here = dirty.offset / shape.span();
      if (here != page && !put()) return false;
      page = here;
      const Range part = dirty.Intersect(shape.GuestOf(page));
      const Range in_page =
          Range{part.offset % shape.span(), part.length}.Outward(bitmap.info.granularity);
      SetBits(bits, in_page.offset >> bitmap.granularity_bits,
              in_page.length >> bitmap.granularity_bits);
      dirty = Range::FromTo(part.end(), dirty.end());
    }
    return true;
  });
  if (read && merged) (void)put();
  if (read && merged) {
    gone.push_back(Range{bitmap.table_offset, uint64_t{bitmap.table_size} * 8});
    merged = PlaceTable(bitmap, table, fresh);
  }
  if (!read || !merged) {
    GiveBack(fresh);
    return read ? std::move(merged) : std::move(read);
  }
  std::vector<Bitmap> bitmaps = bitmaps_;
  bitmaps[index] = std::move(bitmap);
  return SwitchTo(std::move(bitmaps), std::move(fresh), gone);
}

Result<> Qcow2Bitmaps::MergePage(Table& table, uint64_t page, ConstBytes bits,
                                 std::vector<Range>& fresh, std::vector<Range>& gone) {
  if (IsZero(bits) || (table[page] & kBitmapAllOnes)) return {};
  std::vector<std::byte> all(bits.begin(), bits.end());
  if (const uint64_t old = table[page] & kOffsetMask; old != 0) {
    std::vector<std::byte> before(page_bytes());
    TRY_AS("bitmap", layer_.file_->Read(old, Bytes(before)));
    for (size_t i = 0; i < all.size(); ++i) all[i] |= before[i];
    if (all == before) return {};
    gone.push_back({old, page_bytes()});
  }
  table[page] = TRY(NewRun(1, fresh));
  return layer_.file_->Write(table[page], ConstBytes(all)).WithPrefix("bitmap");
}

Result<> Qcow2Bitmaps::TellDirty(const std::string& name, Range within, const Visit& visit) {
  const size_t index = TRY(FindTrusted(name));
  const Bitmap& bitmap = bitmaps_[index];
  const DirtyPages shape(bitmap.granularity_bits, page_bytes());
  within = within.Intersect({0, layer_.info_.size});
  Range found;  // not told yet: the next page may go on with it
  bool goes_on = true;
  auto tell = [&](Range dirty) {
    dirty = dirty.Intersect(within);
    if (dirty.empty()) return true;
    if (!found.empty() && found.end() == dirty.offset) {
      found.length += dirty.length;
      return true;
    }
    goes_on = found.empty() || visit(found);
    found = dirty;
    return goes_on;
  };
  for (uint64_t page = within.offset / shape.span(); goes_on && page * shape.span() < within.end();
       ++page) {
    const PageBits now = TRY(BitsNow(bitmap, index, page));
    if (now.none) continue;
    const Range guest = shape.GuestOf(page);
    VisitBits(now.bits, page_bytes() * 8, [&](uint64_t first, uint64_t number) {
      return tell(
          {guest.offset + (first << bitmap.granularity_bits), number << bitmap.granularity_bits});
    });
  }
  if (goes_on && !found.empty()) (void)visit(found);
  return {};
}

Result<Qcow2Bitmaps::PageBits> Qcow2Bitmaps::BitsNow(const Bitmap& bitmap, size_t index,
                                                     uint64_t page) {
  if (tracking()) {
    for (const Tracked& tracked : tracked_) {
      if (tracked.index != index) continue;
      {
        std::lock_guard lock(mutex_);
        if (const DirtyPages::Page* known = tracked.pages.Find(page)) {
          if (!known->bits.empty()) return PageBits{known->bits};
          return PageBits{std::vector<std::byte>(page_bytes(), std::byte{0xff})};
        }
      }
      return ReadPage(bitmap, page, tracked.table[page]);
    }
  }
  // The disk of a snapshot may be larger.
  if (page >= bitmap.table_size) return Fail(Code::kOutOfRange, "it is too small for this disk");
  be64 entry;
  TRY_AS("bitmap table", layer_.file_->Read(bitmap.table_offset + page * 8,
                                            Bytes(reinterpret_cast<std::byte*>(&entry), 8)));
  return ReadPage(bitmap, page, entry);
}

// ---- Their parts ----

uint64_t Qcow2Bitmaps::EntriesFor(const Bitmap& bitmap, uint64_t size) const {
  return DivideUp(DivideUp(DivideUp(size, bitmap.info.granularity), 8), page_bytes());
}

Result<size_t> Qcow2Bitmaps::Find(const std::string& name) const {
  for (size_t i = 0; i < bitmaps_.size(); ++i) {
    if (bitmaps_[i].info.name == name) return i;
  }
  return Fail(Code::kOutOfRange, "there is no such bitmap");
}

Result<size_t> Qcow2Bitmaps::FindTrusted(const std::string& name) const {
  const size_t index = TRY(Find(name));
  std::lock_guard lock(mutex_);
  if (!bitmaps_[index].info.in_use) return index;
  return Fail(Code::kRefused,
              "it is in use, by another program or by one that was interrupted: it may lack "
              "writes, and can only be removed");
}

Result<> Qcow2Bitmaps::Begin() {
  if (!layer_.info_.writable) return Fail(Code::kReadOnly, "opened for reading");
  if (layer_.format_.version < 3) {
    return Fail(Code::kUnsupported, "a version 2 image (compat=0.10) cannot hold bitmaps");
  }
  TRY(layer_.BeginChange());
  TRY(StopTracking());
  // Also where nothing was tracked: the next write finds out what is to be from now on.
  layer_.writing_.store(false, std::memory_order_release);
  return layer_.Flush();
}

Result<Bitmap> Qcow2Bitmaps::Describe(const NewBitmap& wanted) const {
  Bitmap bitmap;
  bitmap.info.name = wanted.name;
  bitmap.info.enabled = wanted.enabled;
  bitmap.info.granularity = wanted.granularity != 0
                                ? wanted.granularity
                                : std::max(kSmallestChoice, layer_.cluster_size());
  if (wanted.name.empty() || wanted.name.size() > kMaxBitmapName) {
    return Fail(Code::kOutOfRange, "a name has 1 to {} bytes", kMaxBitmapName);
  }
  if (Find(wanted.name)) return Fail(Code::kRefused, "there is one of this name");
  if (bitmaps_.size() >= kMaxBitmaps) {
    return Fail(Code::kNoSpace, "an image has at most {} bitmaps", kMaxBitmaps);
  }
  const uint64_t granularity = bitmap.info.granularity;
  if (!std::has_single_bit(granularity) || granularity >> kMinGranularityBits == 0 ||
      granularity >> kMaxGranularityBits > 1) {
    return Fail(Code::kOutOfRange, "granularity {}: must be a power of two between 512 and 2G",
                granularity);
  }
  if (EntriesFor(bitmap, layer_.info_.size) * page_bytes() > kMaxBitmapBytes) {
    return Fail(Code::kOutOfRange,
                "granularity {} makes more than {} bytes of bits for a disk of {}: use a larger "
                "one",
                granularity, kMaxBitmapBytes, layer_.info_.size);
  }
  bitmap.granularity_bits = static_cast<uint8_t>(std::countr_zero(granularity));
  bitmap.flags = wanted.enabled ? kBitmapAuto : 0;
  return bitmap;
}

// One cluster takes the place of one that is free; only a run has to be at the end.
Result<uint64_t> Qcow2Bitmaps::NewRun(uint64_t clusters, std::vector<Range>& fresh) {
  Allocator& allocator = *layer_.allocator_;
  const Clusters place =
      TRY(clusters == 1 ? allocator.Allocate(1) : allocator.AllocateTogether(clusters));
  fresh.push_back({place.first << layer_.format_.cluster_bits, clusters * page_bytes()});
  return fresh.back().offset;
}

Result<> Qcow2Bitmaps::PlaceTable(Bitmap& bitmap, const Table& table, std::vector<Range>& fresh) {
  bitmap.table_offset = 0;
  bitmap.table_size = static_cast<uint32_t>(table.size());
  if (table.empty()) return {};
  bitmap.table_offset = TRY(NewRun(DivideUp(table.size() * 8, page_bytes()), fresh));
  return WriteTable(bitmap, table);
}

Result<> Qcow2Bitmaps::WriteTable(const Bitmap& bitmap, const Table& table) {
  if (table.empty()) return {};
  std::vector<std::byte> bytes(RoundUp(table.size() * 8, 512));
  for (size_t i = 0; i < table.size(); ++i) StoreAt(Bytes(bytes), i * 8, be64(table[i]));
  return layer_.file_->Write(bitmap.table_offset, ConstBytes(bytes)).WithPrefix("bitmap table");
}

void Qcow2Bitmaps::GiveBack(const std::vector<Range>& fresh) {
  const uint32_t bits = layer_.format_.cluster_bits;
  for (Range range : fresh) {
    layer_.allocator_->GiveBack({.first = range.offset >> bits, .count = range.length >> bits});
  }
}

Result<> Qcow2Bitmaps::WriteDirectory(std::vector<Bitmap>& bitmaps, std::vector<Range>& fresh,
                                      Header& header) {
  header.bitmaps.reset();
  header.autoclear &= ~kBitmapsConsistent;
  if (bitmaps.empty()) return {};
  const std::vector<std::byte> directory = BuildBitmaps(bitmaps);
  if (directory.size() > kMaxBitmapDirectoryBytes) {
    return Fail(Code::kNoSpace, "the bitmap directory would be larger than {} bytes",
                kMaxBitmapDirectoryBytes);
  }
  const uint64_t offset = TRY(NewRun(DivideUp(directory.size(), page_bytes()), fresh));
  header.bitmaps = {static_cast<uint32_t>(bitmaps.size()), directory.size(), offset};
  header.autoclear |= kBitmapsConsistent;
  return layer_.file_->Write(offset, ConstBytes(directory)).WithPrefix("bitmap directory");
}

Result<> Qcow2Bitmaps::SwitchTo(std::vector<Bitmap> bitmaps, std::vector<Range> fresh,
                                const std::vector<Range>& gone) {
  Header wanted = layer_.header_;
  Result<> prepared = WriteDirectory(bitmaps, fresh, wanted);
  if (prepared) prepared = layer_.Flush();
  if (!prepared) {
    GiveBack(fresh);
    return prepared;
  }
  std::vector<Range> old = gone;
  {
    std::lock_guard flush(layer_.flush_mutex_);
    // The flush may have moved the refcount table.
    Header header = layer_.header_;
    if (header.bitmaps) {
      old.push_back({header.bitmaps->directory_offset, header.bitmaps->directory_size});
    }
    header.bitmaps = wanted.bitmaps;
    header.stale_bitmaps = false;
    header.autoclear =
        (header.autoclear & ~kBitmapsConsistent) | (wanted.autoclear & kBitmapsConsistent);
    TRY(layer_.WriteHeaderLocked(header));
    TRY(layer_.file_->Sync());
    directory_ = header.bitmaps ? header.bitmaps->directory_offset : 0;
  }
  layer_.info_.bitmaps.clear();
  for (const Bitmap& bitmap : bitmaps) layer_.info_.bitmaps.push_back(bitmap.info);
  bitmaps_ = std::move(bitmaps);
  return Free(old);
}

// The first flush frees, the second one writes what that changed.
Result<> Qcow2Bitmaps::Free(const std::vector<Range>& gone) {
  uint64_t generation = 0;
  {
    std::lock_guard lock(layer_.map_mutex_);
    generation = layer_.generation_;
  }
  for (Range range : gone) {
    if (!range.empty()) layer_.allocator_->Retire(range, generation, /*punch=*/true);
  }
  TRY(layer_.Flush());
  return layer_.Flush();
}

std::vector<Range> Qcow2Bitmaps::SpaceOf(const Bitmap& bitmap, const Table& table) const {
  std::vector<Range> space;
  if (!table.empty()) space.push_back({bitmap.table_offset, table.size() * 8});
  for (uint64_t entry : table) {
    if (uint64_t offset = entry & kOffsetMask; offset != 0) space.push_back({offset, page_bytes()});
  }
  return space;
}

Result<> Qcow2Bitmaps::WriteFlags(size_t index, uint32_t flags) {
  Bitmap& bitmap = bitmaps_[index];
  TRY(WriteField(bitmap, offsetof(DiskBitmapEntry, flags), AsBytes(be32(flags))));
  bitmap.flags = flags;
  return {};
}

Result<> Qcow2Bitmaps::WriteInUse(size_t index, bool in_use) {
  const uint32_t flags = bitmaps_[index].flags;
  return WriteFlags(index, in_use ? flags | kBitmapInUse : flags & ~kBitmapInUse);
}

Result<> Qcow2Bitmaps::WriteField(const Bitmap& bitmap, uint64_t field, ConstBytes value) {
  return layer_.file_->Write(directory_ + bitmap.at + field, value).WithPrefix("bitmap directory");
}

Result<> Qcow2Bitmaps::CheckEntry(const Bitmap& bitmap, uint64_t index, uint64_t entry) const {
  const uint64_t offset = entry & kOffsetMask;
  if ((entry & kBitmapReserved) || (offset != 0 && (entry & kBitmapAllOnes)) ||
      !IsAligned(offset, page_bytes())) {
    return Fail(Code::kCorrupt, "entry {} of the table at {:#x} is {:#x}", index,
                bitmap.table_offset, entry);
  }
  return {};
}

Result<Qcow2Bitmaps::PageBits> Qcow2Bitmaps::ReadPage(const Bitmap& bitmap, uint64_t page,
                                                      uint64_t entry) const {
  TRY(CheckEntry(bitmap, page, entry));
  const uint64_t offset = entry & kOffsetMask;
  if (entry & kBitmapAllOnes) return PageBits{std::vector(page_bytes(), std::byte{0xff})};
  if (offset == 0) return PageBits{{}, /*none=*/true};
  PageBits page_bits{std::vector<std::byte>(page_bytes())};
  TRY_AS("bitmap", layer_.file_->Read(offset, Bytes(page_bits.bits)));
  return page_bits;
}

// Every cluster that an entry names is the bitmap's alone, as far as the image can tell.
Result<Qcow2Bitmaps::Table> Qcow2Bitmaps::LoadTable(const Bitmap& bitmap) {
  EntryTable loaded;
  TRY(loaded.Load(*layer_.file_, "bitmap table", bitmap.table_offset, bitmap.table_size));
  Table table(loaded.size());
  std::set<uint64_t> seen;
  for (size_t i = 0; i < table.size(); ++i) {
    table[i] = loaded[i];
    TRY(CheckEntry(bitmap, i, table[i]));
    const uint64_t offset = table[i] & kOffsetMask;
    if (offset == 0) continue;
    if (!FitsIn(offset, page_bytes(), layer_.allocator_->file_size()) ||
        !layer_.metadata_.Find({offset, page_bytes()}).empty() ||
        TRY(layer_.allocator_->Refcount(offset)) != 1 || !seen.insert(offset).second) {
      return Fail(Code::kCorrupt,
                  "entry {} of the table at {:#x} ({:#x}) names what is not its own", i,
                  bitmap.table_offset, table[i]);
    }
  }
  return table;
}

}  // namespace platter::qcow2
