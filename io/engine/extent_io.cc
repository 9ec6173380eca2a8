#include "io/engine/extent_io.h"

#include <algorithm>

#include "base/check.h"
#include "io/codec/cipher.h"
#include "io/codec/codec.h"
#include "io/engine/engine.h"
#include "io/iov.h"

namespace platter {
namespace {

constexpr uint64_t kSector = Cipher::kSector;

// A buffer of at least `size` bytes; its content is lost.
Bytes Room(Buffer& buffer, size_t size) {
  if (buffer.size() < size) buffer = Buffer(size);
  return buffer.bytes().first(size);
}

}  // namespace

Extent ExtentPrefix(Extent from, uint64_t length) {
  from.guest.length = length;
  if (!from.packed()) from.host.length = std::min(from.host.length, length);
  return from;
}

Extent ExtentSuffix(Extent from, uint64_t skip) {
  from.guest = Range::FromTo(from.guest.offset + skip, from.guest.end());
  if (from.packed()) {
    from.codec.skip += static_cast<uint32_t>(skip);
  } else if (!from.host.empty()) {
    from.host = Range::FromTo(from.host.offset + skip, from.host.end());
  }
  return from;
}

uint64_t SectorNumber(const Extent& extent) {
  bool guest = extent.codec.cipher->tweak() == Cipher::Tweak::kGuest;
  return (guest ? extent.guest.offset : extent.host.offset) / kSector;
}

// ---- Reading ----

Result<> ExtentReader::Read(std::span<const Extent> extents, std::span<const iovec> into,
                            uint64_t skip, bool more) {
  pieces_.clear();
  ops_.clear();
  encrypted_.clear();
  for (const Extent& extent : extents) {
    if (ReadsAsZero(extent)) {
      IovFillZero(into, skip, extent.guest.length);
    } else if (extent.packed()) {
      TRY(ReadPacked(extent, into, skip, more || &extent != &extents.back()));
    } else if (extent.codec.cipher) {
      TRY(ReadEncrypted(extent, into, skip));
    } else {
      AddPlain(extent, into, skip);
    }
    skip += extent.guest.length;
  }
  TRY(RunOps());
  for (Sectors& run : encrypted_) TRY(run.cipher->Decrypt(run.sector, run.bytes));
  return {};
}

void ExtentReader::AddPlain(const Extent& extent, std::span<const iovec> into, uint64_t skip) {
  size_t first = pieces_.size();
  IovSlice(into, skip, extent.host.length, pieces_);
  Op* last = ops_.empty() ? nullptr : &ops_.back();
  // What continues on the host is one vector read, also where zeros lie between in the guest.
  bool continues = last && last->store == extent.store &&
                   last->host + last->length == extent.host.offset &&
                   last->first + last->count == first;
  if (continues) {
    last->length += extent.host.length;
    last->count += pieces_.size() - first;
  } else {
    ops_.push_back(
        {extent.store, extent.host.offset, extent.host.length, first, pieces_.size() - first});
  }
}

Result<> ExtentReader::RunOps() {
  std::span<const iovec> pieces = pieces_;
  if (ops_.size() == 1) {
    return ops_[0].store->Read(ops_[0].host, pieces.subspan(ops_[0].first, ops_[0].count));
  }
  requests_.clear();
  for (const Op& op : ops_) {
    requests_.push_back({op.store, op.host, pieces.subspan(op.first, op.count)});
  }
  return RingRead(requests_);
}

// Whole sectors that go to one piece of the caller's memory are decrypted there; ragged ones, and
// those that a scatter list cuts, go through the bounce buffer.
Result<> ExtentReader::ReadEncrypted(const Extent& extent, std::span<const iovec> into,
                                     uint64_t skip) {
  Range host = extent.host;
  std::vector<iovec> slice;
  IovSlice(into, skip, host.length, slice);
  if (host == host.Outward(kSector) && slice.size() == 1) {
    encrypted_.push_back({extent.codec.cipher,
                          SectorNumber(extent),
                          {static_cast<std::byte*>(slice[0].iov_base), slice[0].iov_len}});
    AddPlain(extent, into, skip);
    return {};
  }
  for (uint64_t done = 0; done < host.length;) {
    Range part = {host.offset + done, std::min(host.length - done, kBounceSize - kSector)};
    Range whole = part.Outward(kSector);
    Bytes bounce = Room(bounce_, kBounceSize + kSector).first(whole.length);
    TRY(extent.store->Read(whole.offset, bounce));
    TRY(extent.codec.cipher->Decrypt(SectorNumber(ExtentSuffix(extent, done)), bounce));
    IovScatter(bounce.subspan(part.offset - whole.offset, part.length), slice, done);
    done += part.length;
  }
  return {};
}

Result<> ExtentReader::ReadPacked(const Extent& extent, std::span<const iovec> into, uint64_t skip,
                                  bool keep) {
  const Codec& codec = extent.codec;
  uint64_t need = codec.skip + extent.guest.length;
  CHECK(need <= codec.unit);
  std::vector<iovec> slice;
  IovSlice(into, skip, extent.guest.length, slice);
  bool kept = unit_store_ == extent.store && unit_host_ == extent.host && unit_length_ >= need;
  bool direct = codec.skip == 0 && need == codec.unit && slice.size() == 1;
  if (!kept && direct) {
    return Unpack(extent, {static_cast<std::byte*>(slice[0].iov_base), slice[0].iov_len});
  }
  if (!kept && TRY(ReadCached(extent, slice))) return {};
  if (!kept) {
    unit_store_ = nullptr;
    // A zlib stream's checksum is over all of it.
    uint64_t length = keep || codec.id == Codec::kZlib ? codec.unit : need;
    TRY(Unpack(extent, Room(unit_, codec.unit).first(length)));
    unit_store_ = extent.store;
    unit_host_ = extent.host;
    unit_length_ = length;
  }
  IovScatter(unit_.bytes().subspan(codec.skip, extent.guest.length), slice, 0);
  return {};
}

// False where it is better done without the cache. Of a unit that nobody has asked for yet no more
// is unpacked than is needed: the next one to read a part of it pays for the rest, and those after
// him pay nothing.
Result<bool> ExtentReader::ReadCached(const Extent& extent, std::span<const iovec> slice) {
  const Codec& codec = extent.codec;
  const uint64_t need = codec.skip + extent.guest.length;
  if (!cache_ || codec.unit > UnitCache::kMostBytes) return false;
  UnitCache::Unit unit = cache_->Find(extent, *pin_);
  if (!unit || unit->size() < need) {
    // A zlib stream's checksum is over all of it.
    bool whole = unit != nullptr || codec.id == Codec::kZlib;
    auto fresh = std::make_shared<Buffer>(whole ? codec.unit : need);
    Result<> unpacked = Unpack(extent, fresh->bytes());
    // Damage behind what is asked for must not fail the read.
    if (!unpacked && fresh->size() > need) return false;
    TRY(std::move(unpacked));
    unit = std::move(fresh);
    cache_->Put(extent, *pin_, unit);
  }
  IovScatter(unit->bytes().subspan(codec.skip, extent.guest.length), slice, 0);
  return true;
}

// The first bytes of the unit that `extent` is in, as many as there is room for.
Result<> ExtentReader::Unpack(const Extent& extent, Bytes unit) {
  Bytes packed = Room(packed_, extent.host.length);
  TRY(extent.store->Read(extent.host.offset, packed));
  auto unpacked = Decompress(extent.codec.id, packed, unit);
  if (unpacked) return {};
  return std::unexpected(std::move(unpacked.error())
                             .WithPrefix(fmt::format("compressed unit at {:#x} of '{}'",
                                                     extent.host.offset, extent.store->name())));
}

// ---- Writing ----

namespace {

// Encrypts in a bounce buffer: the caller's bytes are not ours to change. The disk may end inside
// the last sector; the format's space does not.
Result<> WriteEncrypted(const Extent& target, std::span<const iovec> from, uint64_t skip) {
  CHECK(IsAligned(target.host.offset, kSector));
  Buffer bounce(std::min<uint64_t>(RoundUp(target.host.length, kSector), kBounceSize));
  for (uint64_t done = 0; done < target.host.length;) {
    uint64_t length = std::min<uint64_t>(target.host.length - done, bounce.size());
    uint64_t whole = RoundUp(length, kSector);
    Bytes bytes = bounce.bytes().first(whole);
    std::vector<iovec> slice;
    IovSlice(from, skip + done, length, slice);
    IovGather(slice, 0, bytes.first(length));
    std::ranges::fill(bytes.subspan(length), std::byte{0});
    TRY(target.codec.cipher->Encrypt(SectorNumber(ExtentSuffix(target, done)), bytes));
    TRY(target.store->Write(target.host.offset + done, bytes));
    done += length;
  }
  return {};
}

// True if one write covers both.
bool Follows(const Extent& before, const Extent& target) {
  return !target.codec.cipher && before.store == target.store &&
         before.host.end() == target.host.offset;
}

}  // namespace

Result<> WriteExtents(std::span<const Extent> target, std::span<const iovec> from) {
  uint64_t skip = 0;
  std::vector<iovec> slice;
  for (size_t i = 0; i < target.size();) {
    CHECK(target[i].store != nullptr && !target[i].packed());
    if (target[i].codec.cipher) {
      TRY(WriteEncrypted(target[i], from, skip));
      skip += target[i++].guest.length;
      continue;
    }
    size_t first = i++;
    while (i < target.size() && Follows(target[i - 1], target[i])) ++i;
    uint64_t length = target[i - 1].host.end() - target[first].host.offset;
    slice.clear();
    IovSlice(from, skip, length, slice);
    TRY(target[first].store->Write(target[first].host.offset, slice));
    skip += length;
  }
  return {};
}

Result<> WriteExtents(std::span<const Extent> target, Range part, std::span<const iovec> from) {
  if (target.front().guest.offset == part.offset && target.back().guest.end() == part.end()) {
    return WriteExtents(target, from);
  }
  std::vector<Extent> cut;
  for (const Extent& extent : target) {
    Range both = extent.guest.Intersect(part);
    if (both.empty()) continue;
    Extent rest = ExtentSuffix(extent, both.offset - extent.guest.offset);
    cut.push_back(ExtentPrefix(rest, both.length));
  }
  return WriteExtents(cut, from);
}

namespace {

// Fill up to this size goes out with the data in one vector write; units so large that their fill
// does not fit (VHDX blocks) are filled in pieces. Encrypted targets always go at once, since data
// and fill may share a sector.
constexpr uint64_t kFillAtOnce = 4 * kMiB;

Result<> FillInPieces(Layer& layer, Reservation& reservation, std::span<const Range> fills,
                      std::span<const iovec> data) {
  Buffer piece;
  for (Range fill : fills) {
    for (uint64_t at = fill.offset; at < fill.end();) {
      Range part = Range::FromTo(at, std::min(fill.end(), RoundDown(at, kMiB) + kMiB));
      if (piece.size() < part.length) piece = Buffer(part.length);
      Bytes bytes = piece.bytes().first(part.length);
      TRY(Read(layer, part.offset, bytes));
      iovec one{bytes.data(), bytes.size()};
      TRY(WriteExtents(reservation.target(), part, {&one, 1}));
      at = part.end();
    }
  }
  return WriteExtents(reservation.target(), reservation.range(), data);
}

// The fill without what reads as zeros, where the targets do so already: an overlay of a disk that
// is mostly empty writes little more than it is given.
Result<std::vector<Range>> FillThatIsData(Layer& layer, const Reservation& reservation) {
  std::vector<Range> fills;
  const Pin pin = layer.Hold();
  for (Range left : reservation.fill()) {
    while (!left.empty()) {
      Extent extent;
      TRY(layer.Map(left, std::span(&extent, 1)));
      if (!ReadsAsZero(extent)) {
        if (fills.empty() || fills.back().end() != left.offset) fills.push_back({left.offset, 0});
        fills.back().length += extent.guest.length;
      }
      left = Range::FromTo(extent.guest.end(), left.end());
    }
  }
  return fills;
}

uint64_t LengthOf(std::span<const Range> ranges) {
  uint64_t length = 0;
  for (Range range : ranges) length += range.length;
  return length;
}

}  // namespace

Result<> FillReservation(Layer& layer, Reservation& reservation, std::span<const iovec> data) {
  std::span<const Range> fill = reservation.fill();
  if (fill.empty()) return WriteExtents(reservation.target(), data);
  const uint64_t total = LengthOf(fill);
  if (std::ranges::all_of(reservation.target(), ReadsAsZero)) {
    const std::vector<Range> fills = TRY(FillThatIsData(layer, reservation));
    if (LengthOf(fills) < total) return FillInPieces(layer, reservation, fills, data);
  }
  bool encrypted = reservation.target().front().codec.cipher != nullptr;
  if (total > kFillAtOnce && !encrypted) return FillInPieces(layer, reservation, fill, data);

  Buffer room(total);
  std::vector<iovec> all;
  all.reserve(data.size() + fill.size());
  bool data_placed = false;
  std::byte* next = room.data();
  for (Range range : fill) {
    if (range.offset > reservation.range().offset && !data_placed) {
      all.insert(all.end(), data.begin(), data.end());
      data_placed = true;
    }
    TRY(Read(layer, range.offset, Bytes{next, range.length}));
    all.push_back({next, range.length});
    next += range.length;
  }
  if (!data_placed) all.insert(all.end(), data.begin(), data.end());
  return WriteExtents(reservation.target(), all);
}

}  // namespace platter
