// Opening an extent, and from guest bytes to grains. The essay is in vmdk_sparse.h.
//
// What lies past the end of the file. A grain that begins there is corrupt: nobody has ever
// written it, and to answer zeros would be to invent data. One that the file holds in part reads as
// zeros where the file ends: some programs do not write their last grain to its end.
#include "formats/vmdk/vmdk_sparse.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/endian.h"

namespace platter::vmdk {

namespace {

// Of all extents together, but for what one needs to be of use.
constexpr size_t kTableCacheBytes = 8 * kMiB, kLeastTableCache = 32 * kKiB;
constexpr size_t kTablesToDirectory = 8;  // memory for the one to that for the other
constexpr size_t kMostBadTables = 1024;
constexpr size_t kMostPieces = 64;  // of one Map

Result<SparseGeometry> ReadGeometry(Store& file, uint64_t size) {
  std::array<std::byte, kSector> head{};
  uint64_t there = std::min<uint64_t>(size, head.size());
  TRY_AS("header", file.Read(0, Bytes(head).first(there)));
  SparseGeometry geometry = TRY(ParseSparse(ConstBytes(head).first(there)));
  if (geometry.kind == SparseKind::kSe) {
    std::array<std::byte, kSector> second{};
    if (size < 2 * kSector) return Fail(Code::kCorrupt, "volatile header: the file ends before it");
    TRY_AS("volatile header", file.Read(kSector, Bytes(second)));
    TRY(ParseSeVolatile(second));
  }
  if (!geometry.at_end) return geometry;
  std::array<std::byte, 3 * kSector> tail{};
  if (size < kSector + tail.size()) {
    return Fail(Code::kCorrupt, "footer: the file of {} bytes is too short for one", size);
  }
  // Devices, and files that were copied from them, are longer than the stream: not ours to search.
  TRY_AS("footer", file.Read(RoundDown(size, kSector) - tail.size(), Bytes(tail)));
  return ParseFooter(geometry, tail);
}

}  // namespace

SparseExtent::SparseExtent(Store& file, SparseGeometry geometry, uint64_t file_size, PinSet& pins,
                           size_t extents)
    : file_(file),
      geometry_(std::move(geometry)),
      pins_(pins),
      file_end_(file_size),
      table_bytes_(std::max(kTableCacheBytes / extents, kLeastTableCache)),
      directory_(file, "grain directory", static_cast<uint32_t>(kSector),
                 table_bytes_ / kTablesToDirectory),
      tables_(file, "grain table", geometry_.table_bytes(), table_bytes_) {}

SparseExtent::~SparseExtent() = default;

Result<std::unique_ptr<SparseExtent>> SparseExtent::Open(Store& file, bool writable, PinSet& pins,
                                                         size_t extents) {
  uint64_t size = TRY(file.Size());
  SparseGeometry geometry = TRY(ReadGeometry(file, size));
  std::unique_ptr<SparseExtent> extent(
      new SparseExtent(file, std::move(geometry), size, pins, extents));
  TRY(extent->CheckDirectories());
  if (writable) TRY(extent->PrepareToWrite());
  return extent;
}

// A directory has to be inside the file, as a whole; the redundant one stands in for the first.
Result<> SparseExtent::CheckDirectories() {
  SparseGeometry& g = geometry_;
  const uint64_t length = RoundUp(g.directory_entries * g.entry_size(), kSector);
  auto good = [&](uint64_t at) { return at >= kSector && FitsIn(at, length, file_end_); };
  if (g.redundant && !good(*g.redundant)) g.redundant.reset();
  if (g.directory_entries == 0 || good(g.directory)) return {};
  if (!g.redundant) {
    return Fail(Code::kCorrupt,
                "grain directory at {:#x}: its {} bytes are not inside the file ({:#x})",
                g.directory, length, file_end_.load());
  }
  g.directory = *g.redundant;
  g.redundant.reset();
  used_redundant_ = true;
  return {};
}

Range SparseExtent::GrainRange(uint64_t guest) const {
  uint64_t start = RoundDown(guest, geometry_.grain);
  return Range{start, geometry_.grain}.Intersect({0, geometry_.capacity});
}

bool SparseExtent::HoldsMetadata(Range host) const {
  const SparseGeometry& g = geometry_;
  const Range directory{g.directory, g.directory_entries * g.entry_size()};
  if (host.offset < kSector || host.Overlaps(g.descriptor) || host.Overlaps(directory)) return true;
  return g.redundant && host.Overlaps({*g.redundant, directory.length});
}

// The entry for `table` of the directory at `directory`.
std::optional<uint64_t> SparseExtent::EntryLocked(uint64_t directory, uint64_t table, Stop& stop) {
  uint64_t at = table * geometry_.entry_size(), slice = RoundDown(at, kSector);
  auto ref = directory_.TryGet(directory + slice);
  if (!ref) {
    stop = {&directory_, directory + slice, 0, {}};
    return std::nullopt;
  }
  return LoadEntry(geometry_, ref.bytes(), (at - slice) / geometry_.entry_size());
}

// Where the table is that `entry` names, if it can be one.
Result<uint64_t> SparseExtent::GoodTable(uint64_t entry) const {
  uint64_t at = TRY(DecodeTable(geometry_, entry));
  if (at == 0) return at;
  Range place{at, geometry_.table_bytes()};
  if (!FitsIn(at, place.length, file_end_)) {
    return Fail(Code::kCorrupt, "the grain table at {:#x} reaches past the end of the file ({:#x})",
                at, file_end_.load());
  }
  if (HoldsMetadata(place)) {
    return Fail(Code::kCorrupt,
                "the grain table at {:#x} lies on the header, the descriptor or "
                "a grain directory",
                at);
  }
  return at;
}

// Where grain table number `table` is, 0 for nowhere; the redundant one where the first is
// damaged. Also where the first directory has none and the second has: one that lost its entry.
std::optional<uint64_t> SparseExtent::TableLocked(uint64_t table, Stop& stop) {
  auto entry = EntryLocked(geometry_.directory, table, stop);
  if (!entry) return std::nullopt;
  Result<uint64_t> first = GoodTable(*entry);
  bool usable = first.has_value() && *first != 0 && !bad_tables_.contains(*first);
  if (usable || (!geometry_.redundant && first.has_value())) return *first;
  if (geometry_.redundant) {
    auto second_entry = EntryLocked(*geometry_.redundant, table, stop);
    if (!second_entry) return std::nullopt;
    Result<uint64_t> second = GoodTable(*second_entry);
    bool usable_second = second.has_value() && *second != 0;
    if (usable_second) return *second;
    if (first.has_value()) return *first;
  }
  stop.failure =
      std::move(first.error()).WithPrefix(fmt::format("grain directory entry {}", table));
  return std::nullopt;
}

// What a table entry names, if it can.
Result<Grain> SparseExtent::GoodGrain(uint64_t entry) const {
  Grain grain = TRY(DecodeGrain(geometry_, entry));
  if (grain.kind != Grain::kData) return grain;
  if (grain.host >= file_end_) {
    return Fail(Code::kCorrupt, "the grain at {:#x} lies past the end of the file ({:#x})",
                grain.host, file_end_.load());
  }
  if (HoldsMetadata({grain.host, 1})) {
    return Fail(Code::kCorrupt,
                "the grain at {:#x} lies on the header, the descriptor or a grain directory",
                grain.host);
  }
  return grain;
}

// What the redundant table says where the first one's entry is damaged as `why` says.
std::optional<Grain> SparseExtent::RedundantLocked(uint64_t table, uint64_t index, Error why,
                                                   Stop& stop) {
  if (geometry_.redundant) {
    auto entry = EntryLocked(*geometry_.redundant, table, stop);
    if (!entry) return std::nullopt;
    Result<uint64_t> place = GoodTable(*entry);
    if (place.has_value() && *place != 0 && !bad_tables_.contains(*place)) {
      auto ref = tables_.TryGet(*place);
      if (!ref) {
        stop = {&tables_, *place, *place, {}};
        return std::nullopt;
      }
      Result<Grain> grain = GoodGrain(LoadEntry(geometry_, ref.bytes(), index));
      if (grain.has_value() && grain->kind == Grain::kData) return *grain;
    }
  }
  stop.failure = std::move(why).WithPrefix(fmt::format("grain table {}, entry {}", table, index));
  return std::nullopt;
}

bool SparseExtent::AddPiece(std::span<Piece> pieces, size_t& count, const Piece& piece,
                            bool packed) {
  if (count > 0) {
    Piece& last = pieces[count - 1];
    bool same = last.grain.kind == piece.grain.kind;
    bool follows = same && (piece.grain.kind != Grain::kData ||
                            (!packed && last.grain.host + last.guest.length == piece.grain.host));
    if (follows) {
      last.guest.length += piece.guest.length;
      return true;
    }
  }
  if (count == pieces.size()) return false;
  pieces[count++] = piece;
  return true;
}

// As much of `part` as is in memory and has room; 0 says why in `stop`. Packed grains are named by
// where they begin, plain ones by where the bytes of `guest` are.
size_t SparseExtent::CollectLocked(Range part, std::span<Piece> pieces, Stop& stop) {
  const uint64_t span = geometry_.table_span();
  size_t count = 0;
  for (uint64_t at = part.offset; at < part.end();) {
    const uint64_t table = at / span;
    Range here = Range::FromTo(at, std::min((table + 1) * span, part.end()));
    if (stream_) {
      for (uint64_t end; at < here.end(); at = end) {
        end = std::min(RoundDown(at, geometry_.grain) + geometry_.grain, here.end());
        uint64_t entry = stream_->Entry(at / geometry_.grain);
        Grain grain{entry == 0 ? Grain::kHole : Grain::kData, entry * kSector};
        if (!AddPiece(pieces, count, {Range::FromTo(at, end), grain}, true)) return count;
      }
      continue;
    }
    auto place = TableLocked(table, stop);
    if (!place) break;
    if (*place == 0) {
      if (!AddPiece(pieces, count, {here, {}}, false)) break;
      at = here.end();
      continue;
    }
    auto ref = tables_.TryGet(*place);
    if (!ref) {
      stop = {&tables_, *place, *place, {}};
      break;
    }
    if (!CollectTableLocked(ref.bytes(), here, pieces, count, stop)) break;
    at = here.end();
  }
  return count;
}

// `part` is all in the table `bytes`. False: no further.
bool SparseExtent::CollectTableLocked(ConstBytes bytes, Range part, std::span<Piece> pieces,
                                      size_t& count, Stop& stop) {
  const uint64_t grain_size = geometry_.grain, number = part.offset / geometry_.table_span();
  const bool packed = geometry_.compressed();
  for (uint64_t at = part.offset; at < part.end();) {
    uint64_t start = RoundDown(at, grain_size);
    uint64_t index = at / grain_size % geometry_.table_entries;
    Range here = Range::FromTo(at, std::min(start + grain_size, part.end()));
    Result<Grain> good = GoodGrain(LoadEntry(geometry_, bytes, index));
    Grain grain;
    if (good.has_value()) {
      grain = *good;
    } else {
      auto other = RedundantLocked(number, index, std::move(good.error()), stop);
      if (!other) return false;
      grain = *other;
    }
    if (grain.kind == Grain::kData && !packed) grain.host += at - start;
    if (!AddPiece(pieces, count, {here, grain}, packed)) return false;
    at = here.end();
  }
  return true;
}

// Reads what a lookup stopped for. A first table that cannot be read gives way to the redundant.
Result<> SparseExtent::Load(Stop& stop, TableCache::Ref& loaded) {
  if (stop.failure) return std::unexpected(std::move(*stop.failure));
  auto got = stop.cache->Get(stop.missing);
  if (got.has_value()) {
    loaded = std::move(*got);
    return {};
  }
  std::lock_guard lock(mutex_);
  bool again = geometry_.redundant && stop.instead_of != 0 && bad_tables_.size() < kMostBadTables &&
               bad_tables_.insert(stop.instead_of).second;
  if (again) return {};
  return std::unexpected(std::move(got.error()));
}

Result<uint64_t> SparseExtent::Map(Range part, uint64_t base, ExtentList& list, bool may_read) {
  std::array<Piece, kMostPieces> pieces;
  TableCache::Ref loaded;  // keeps what we waited for in memory until it was looked at
  while (true) {
    if (may_read) sched::Yield("map");
    Stop stop;
    size_t count = 0;
    {
      std::lock_guard lock(mutex_);
      count = CollectLocked(part, pieces, stop);
    }
    if (count > 0) {
      if (!may_read && geometry_.compressed()) return uint64_t{0};  // markers would have to be read
      return Describe(std::span(pieces).first(count), base, list);
    }
    if (!may_read) return uint64_t{0};
    TRY(Load(stop, loaded));
  }
}

// Extents for the pieces; how many bytes of them there was room for.
Result<uint64_t> SparseExtent::Describe(std::span<const Piece> pieces, uint64_t base,
                                        ExtentList& list) {
  uint64_t done = 0;
  const uint64_t end = file_end_;
  auto add = [&](Extent extent) {
    extent.guest.offset += base;
    if (!list.Add(extent)) return false;
    done += extent.guest.length;
    return true;
  };
  for (const Piece& piece : pieces) {
    Extent extent;
    extent.guest = piece.guest;
    if (piece.grain.kind == Grain::kZero) {
      extent.kind = Kind::kZero;
    } else if (piece.grain.kind == Grain::kHole) {
      extent.kind = parent_ ? Kind::kParent : Kind::kHole;
    } else if (geometry_.compressed()) {
      auto packed = PackedExtent(piece);
      if (!packed.has_value()) {
        if (done > 0) return done;
        return std::unexpected(std::move(packed.error()));
      }
      extent = *packed;
    } else if (piece.grain.host < end) {
      extent.kind = Kind::kData;
      extent.store = &file_;
      extent.guest.length = std::min(piece.guest.length, end - piece.grain.host);
      extent.host = {piece.grain.host, extent.guest.length};
      extent.writable = writable_now_;
      if (!add(extent)) return done;
      if (extent.guest.length == piece.guest.length) continue;
      Extent rest;
      rest.kind = Kind::kZero;
      rest.guest = Range::FromTo(extent.guest.end(), piece.guest.end());
      extent = rest;
    } else {
      extent.kind = Kind::kZero;  // the end of a grain of which the file holds the beginning
    }
    if (!add(extent)) return done;
  }
  return done;
}

// A packed grain's extent: its marker says how long the stream is.
Result<Extent> SparseExtent::PackedExtent(const Piece& piece) const {
  const uint64_t start = RoundDown(piece.guest.offset, geometry_.grain);
  Extent extent;
  extent.guest = piece.guest;
  extent.kind = Kind::kData;
  extent.store = &file_;
  extent.host = TRY(PackedHost(start, piece.grain.host));
  extent.codec.id = Codec::kZlib;
  // Of the last grain some programs pack only what is inside the disk.
  extent.codec.unit = static_cast<uint32_t>(GrainRange(start).length);
  extent.codec.skip = static_cast<uint32_t>(piece.guest.offset - start);
  return extent;
}

Result<Range> SparseExtent::PackedHost(uint64_t guest, uint64_t host) const {
  const uint64_t most = 2 * geometry_.grain, end = file_end_;
  if (!geometry_.markers()) return Range{host, std::min(most, end - host)};
  auto where = [&] { return fmt::format("grain at {:#x}, guest offset {:#x}", host, guest); };
  std::array<std::byte, sizeof(GrainMarker)> bytes{};
  if (!FitsIn(host, bytes.size(), end)) {
    return Fail(Code::kCorrupt, "{}: its marker reaches past the end of the file ({:#x})", where(),
                end);
  }
  TRY_AS(where(), file_.Read(host, Bytes(bytes)));
  auto marker = *LoadAt<GrainMarker>(bytes, 0);
  if (marker.sector != guest / kSector) {
    return Fail(Code::kCorrupt, "{}: its marker says that it is the grain of sector {:#x}", where(),
                uint64_t{marker.sector});
  }
  const Range stream{host + bytes.size(), marker.size};
  if (stream.empty() || stream.length > most || !FitsIn(stream.offset, stream.length, end)) {
    return Fail(Code::kCorrupt, "{}: its marker says {} bytes", where(), stream.length);
  }
  return stream;
}

}  // namespace platter::vmdk
