// Reserve, Publish, Discard. What becomes of a grain that a request touches:
//
//   a grain of data        in place
//   zeros, or nothing      a new grain; filled to its borders where its space does not read as
//                          zeros, or where the parent shows through
#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/new_identity.h"
#include "formats/vmdk/vmdk_info.h"
#include "formats/vmdk/vmdk_layer.h"

namespace platter::vmdk {

namespace {
constexpr uint64_t kMostFlat = 64 * kMiB;  // in one reservation
constexpr uint64_t kMostStreamed = 4 * kMiB;
}  // namespace

Result<> VmdkLayer::CheckWritable(Range want) {
  if (!p_.info.writable) return Fail(Code::kReadOnly, "opened for reading");
  return CheckInside(want);
}

Result<> VmdkLayer::CheckAccess(const DiskExtent& extent) const {
  const ExtentLine& line = extent.line;
  if (line.access == ExtentLine::kReadWrite && extent.sparse && !extent.sparse->stream()) {
    const SparseGeometry& g = extent.sparse->geometry();
    if (!g.compressed() && !g.markers()) return {};
    return Fail(Code::kUnsupported,
                "a streamOptimized image can be written only while it is made: convert it to "
                "another subformat to change it");
  }
  if (line.access == ExtentLine::kReadWrite && (extent.store || extent.sparse)) return {};
  bool zeros = line.access == ExtentLine::kReadWrite;
  return Fail(Code::kReadOnly, "the extent at guest offset {:#x} ({} bytes) is {}",
              extent.guest.offset, extent.guest.length,
              zeros ? std::string_view("ZERO: it has no place for data") : AccessName(line.access));
}

// The content is about to change: so does its id, which children know us by. After all that can
// refuse the change; no lock is held.
Result<> VmdkLayer::BeginWriting() {
  if (writing_.load(std::memory_order_acquire)) return FlushIfCrowded();
  std::lock_guard lock(begin_mutex_);
  if (writing_) return {};
  Descriptor& d = p_.descriptor;
  if (!d.change_track.empty()) {
    return Fail(Code::kUnsupported,
                "change tracking is on ('{}') and would not see our changes; switch it off first",
                Printable(d.change_track));
  }
  for (DiskExtent& extent : p_.extents) {
    if (p_.fresh || !extent.sparse || extent.line.access != ExtentLine::kReadWrite) continue;
    TRY_AS(fmt::format("extent '{}'", Printable(extent.line.name)),
           extent.sparse->PrepareFirstWrite());
  }
  if (!p_.fresh && d.cid_place) {
    ImageId random = MakeImageId(CreateOptions{}, "CID");
    uint32_t cid = *LoadAt<le32>(random, 0);
    // Two values with meanings of their own: no parent, and what programs write that know none.
    if (cid >= kNoParentCid - 1 || cid == *d.cid) cid ^= 0x5a5a5a5a;
    TRY_AS("descriptor", WriteDescriptor(WithCid(d, cid)));
    p_.info.identity.version = CidText(cid);
  }
  for (DiskExtent& extent : p_.extents) {
    if (extent.sparse) extent.sparse->AllowWritable();
  }
  writing_.store(true, std::memory_order_release);
  return {};
}

// In place; where only the digits of an id differ, in one sector as a rule. Then Sync.
Result<> VmdkLayer::WriteDescriptor(const std::string& text) {
  Store& file = *p_.file;
  std::string padded = text;
  if (!p_.embedded.empty()) {
    if (text.size() > p_.embedded.length) {
      return Fail(Code::kNoSpace, "its {} bytes do not fit the {} that the header gives it",
                  text.size(), p_.embedded.length);
    }
    padded.resize(p_.embedded.length, '\0');
  }
  TRY(file.Write(p_.embedded.offset, AsBytes(std::string_view(padded))));
  if (p_.embedded.empty() && TRY(file.Size()) > padded.size()) TRY(file.Resize(padded.size()));
  TRY(file.Sync());
  p_.descriptor = TRY(ParseDescriptor(text));
  return {};
}

// No lock is held, but maybe ranges.
Result<> VmdkLayer::FlushIfCrowded() {
  for (DiskExtent& extent : p_.extents) {
    if (extent.sparse && extent.sparse->crowded()) TRY(extent.sparse->Flush());
  }
  return {};
}

// `part` in whole grains of its extent.
RangeLock::Guard VmdkLayer::LockGrains(const DiskExtent& extent, Range part) {
  if (extent.sparse) {
    const uint64_t grain = extent.sparse->geometry().grain, base = extent.guest.offset;
    Range inside = Range{part.offset - base, part.length}.Outward(grain);
    part = Range{inside.offset + base, inside.length}.Intersect(extent.guest);
  }
  return ranges_.Lock(part);
}

Result<std::unique_ptr<Reservation>> VmdkLayer::Reserve(Range want) {
  return Named(ReserveSome(want));
}

Result<std::unique_ptr<Reservation>> VmdkLayer::ReserveSome(Range want) {
  TRY(CheckWritable(want));
  DiskExtent& extent = ExtentAt(want.offset);
  TRY(CheckAccess(extent));
  if (p_.info.only_packed) {
    return Fail(Code::kUnsupported, "a streamOptimized image takes compressed grains only");
  }
  TRY(BeginWriting());
  Range part = want.Intersect(extent.guest);
  if (extent.sparse) {
    part = extent.sparse->OneTable({part.offset - extent.guest.offset, part.length});
    part.offset += extent.guest.offset;
  } else {
    part.length = std::min(part.length, kMostFlat);
  }
  sched::Yield("reserve");
  auto reservation = std::make_unique<VmdkReservation>(extent, LockGrains(extent, part));
  TRY(extent.sparse ? PlanSparse(*reservation, part) : PlanFlat(*reservation, part));
  return std::unique_ptr<Reservation>(std::move(reservation));
}

Result<> VmdkLayer::PlanFlat(VmdkReservation& reservation, Range part) {
  const DiskExtent& extent = reservation.extent_;
  uint64_t host = extent.offset + (part.offset - extent.guest.offset);
  if (host >= extent.end) {
    return Fail(Code::kCorrupt, "guest offset {:#x}: extent '{}' ends at {:#x}, before {:#x}",
                part.offset, Printable(extent.line.name), extent.end, host);
  }
  Extent target;
  target.guest = {part.offset, std::min(part.length, extent.end - host)};
  target.kind = Kind::kData;
  target.writable = true;
  target.store = extent.store;
  target.host = {host, target.guest.length};
  reservation.AddTarget(target);
  reservation.range_ = target.guest;
  return {};
}

Result<> VmdkLayer::PlanSparse(VmdkReservation& reservation, Range part) {
  DiskExtent& extent = reservation.extent_;
  SparseExtent& sparse = *extent.sparse;
  const uint64_t base = extent.guest.offset, grain = sparse.geometry().grain;
  const Range inside{part.offset - base, part.length};
  reservation.tables_ = TRY(sparse.OwnTables(inside.offset));
  std::vector<Grain> grains = TRY(sparse.Read(reservation.tables_, inside));
  reservation.range_ = {part.offset, 0};
  for (size_t i = 0; i < grains.size();) {
    const uint64_t at = RoundDown(inside.offset, grain) + i * grain;
    auto piece = [&](uint64_t index) {
      return Range{base + at + index * grain, grain}.Intersect(part);
    };
    if (grains[i].kind == Grain::kData) {
      PlanGrain(reservation, piece(0), grains[i], grains[i].host, false, false);
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < grains.size() && grains[end].kind != Grain::kData) ++end;
    auto run = sparse.Allocate(end - i);
    if (!run.has_value()) {
      if (reservation.range_.empty()) return std::unexpected(std::move(run.error()));
      break;
    }
    reservation.fresh_.push_back(*run);
    for (uint64_t k = 0; k < run->count; ++k) {
      PlanGrain(reservation, piece(k), grains[i + k], run->host + k * grain, true, run->zeroed);
    }
    i += run->count;
  }
  return {};
}

// Targets, fills and the new entry for `part` of one grain, which is, or will be, at `host`.
void VmdkLayer::PlanGrain(VmdkReservation& reservation, Range part, const Grain& old, uint64_t host,
                          bool fresh, bool zeroed) {
  const DiskExtent& extent = reservation.extent_;
  const uint64_t base = extent.guest.offset;
  Range whole = extent.sparse->GrainRange(part.offset - base);
  whole.offset += base;
  whole = whole.Intersect(extent.guest);
  const uint64_t first = RoundDown(part.offset - base, extent.sparse->geometry().grain) + base;
  const bool shows_parent = old.kind == Grain::kHole && extent.sparse->has_parent();
  Range here = fresh && (shows_parent || !zeroed) ? whole : part;
  Extent target;
  target.guest = here;
  target.kind = Kind::kData;
  target.writable = !fresh;
  target.store = extent.store;
  target.host = {host + (here.offset - first), here.length};
  reservation.AddTarget(target);
  reservation.AddFill(Range::FromTo(here.offset, part.offset));
  reservation.AddFill(Range::FromTo(part.end(), here.end()));
  reservation.range_.length = part.end() - reservation.range_.offset;
  if (!fresh) return;
  const SparseGeometry& g = extent.sparse->geometry();
  uint64_t index = (part.offset - base) / g.grain % g.table_entries;
  reservation.updates_.push_back({index, extent.sparse->EntryFor(host)});
}

// ---- Streams ----

Result<std::unique_ptr<Reservation>> VmdkLayer::ReservePacked(Range units,
                                                              std::span<const uint32_t> sizes) {
  if (!p_.info.compressed_units) return Layer::ReservePacked(units, sizes);
  return Named(ReserveStream(units, sizes));
}

Result<std::unique_ptr<Reservation>> VmdkLayer::ReserveStream(Range units,
                                                              std::span<const uint32_t> sizes) {
  TRY(CheckWritable(units));
  DiskExtent& extent = p_.extents[0];
  const uint64_t grain = extent.sparse->geometry().grain;
  CHECK(sizes.size() == DivideUp(units.length, grain));
  if (!IsAligned(units.offset, grain) ||
      (!IsAligned(units.end(), grain) && units.end() != p_.info.size)) {
    return Fail(Code::kOutOfRange, "{:#x}+{:#x} are no whole grains", units.offset, units.length);
  }
  TRY(BeginWriting());
  units.length = std::min(units.length, std::max(grain, RoundDown(kMostStreamed, grain)));
  sizes = sizes.first(DivideUp(units.length, grain));
  auto reservation = std::make_unique<VmdkReservation>(extent, ranges_.Lock(units));
  StreamWriter& stream = *extent.sparse->stream();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0 || sizes[i] > 2 * grain) {
      return Fail(Code::kOutOfRange, "a compressed grain of {} bytes (1 to {})", sizes[i],
                  2 * grain);
    }
    if (stream.Entry(units.offset / grain + i) != 0) {
      return Fail(Code::kUnsupported, "the grain at {:#x} is in the stream already",
                  units.offset + i * grain);
    }
  }
  std::vector<uint64_t> places = TRY(stream.Append(units.offset / grain, sizes));
  reservation->streamed_ = true;
  reservation->range_ = units;
  for (size_t i = 0; i < places.size(); ++i) {
    Extent target;
    target.guest = Range{units.offset + i * grain, grain}.Intersect(units);
    target.kind = Kind::kData;
    target.store = extent.store;
    target.host = {places[i], sizes[i]};
    target.codec.id = Codec::kZlib;
    target.codec.unit = static_cast<uint32_t>(grain);
    reservation->target_.push_back(target);
  }
  return std::unique_ptr<Reservation>(std::move(reservation));
}

// ---- The reservation ----

void VmdkReservation::AddTarget(const Extent& extent) {
  if (!target_.empty()) {
    Extent& last = target_.back();
    if (last.guest.end() == extent.guest.offset && last.host.end() == extent.host.offset &&
        last.writable == extent.writable) {
      last.guest.length += extent.guest.length;
      last.host.length += extent.host.length;
      return;
    }
  }
  target_.push_back(extent);
}

void VmdkReservation::AddFill(Range range) {
  if (!range.empty()) fill_.push_back(range);
}

Result<> VmdkReservation::Publish() {
  sched::Yield("publish");
  published_ = true;
  if (streamed_) {
    for (const Extent& unit : target_) {
      extent_.sparse->stream()->Publish(unit.guest.offset / unit.codec.unit, unit.host.offset);
    }
  } else if (!updates_.empty()) {
    extent_.sparse->Write(tables_, updates_);
  }
  return {};
}

VmdkReservation::~VmdkReservation() {
  if (published_) return;
  if (streamed_) {
    for (auto unit = target_.rbegin(); unit != target_.rend(); ++unit) {
      extent_.sparse->stream()->Drop(unit->host.offset, static_cast<uint32_t>(unit->host.length));
    }
  }
  for (SparseExtent::Run run : fresh_) extent_.sparse->GiveBack(run);
}

// ---- Discard ----

Result<Range> VmdkLayer::Discard(Range want, Kind leave) {
  CHECK(leave != Kind::kData);
  TRY(Named(CheckWritable(want)));
  DiskExtent& extent = ExtentAt(want.offset);
  Range part = want.Intersect(extent.guest);
  if (!extent.sparse && !extent.store && extent.line.access == ExtentLine::kReadWrite) {
    return leave == Kind::kParent ? Range{part.offset, 0} : part;  // zeros already
  }
  // In a stream that is being made, what nothing was appended for reads as nothing.
  if (p_.info.only_packed) return Range{part.offset, 0};
  TRY(Named(CheckAccess(extent)));
  TRY(Named(BeginWriting()));
  return Named(extent.sparse ? DiscardSparse(extent, part, leave)
                             : DiscardFlat(extent, part, leave));
}

Result<Range> VmdkLayer::DiscardFlat(DiskExtent& extent, Range part, Kind leave) {
  const Range nothing{part.offset, 0};
  bool unmap = leave != Kind::kZero;
  if ((unmap && !extent.store->caps().punch) ||
      (leave == Kind::kParent && p_.descriptor.has_parent())) {
    return nothing;
  }
  uint64_t host = extent.offset + (part.offset - extent.guest.offset);
  if (host >= extent.end) return nothing;
  part.length = std::min(part.length, extent.end - host);
  auto guard = ranges_.Lock(part);
  TRY(extent.store->Zero({host, part.length}, unmap));
  return part;
}

// In steps of one grain table; the engine comes back for the rest.
Result<Range> VmdkLayer::DiscardSparse(DiskExtent& extent, Range part, Kind leave) {
  SparseExtent& sparse = *extent.sparse;
  const SparseGeometry& g = sparse.geometry();
  const uint64_t base = extent.guest.offset, size = extent.guest.length;
  const bool may_be_absent = leave == Kind::kParent || !sparse.has_parent();
  const Range nothing{part.offset, 0};
  if (!may_be_absent && !sparse.zeroed_grains()) return nothing;
  Range inside{part.offset - base, part.length};
  uint64_t first = RoundUp(inside.offset, g.grain);
  uint64_t end = inside.end() == size ? size : RoundDown(inside.end(), g.grain);
  if (first >= end) return nothing;
  end = std::min(end, RoundDown(first, g.table_span()) + g.table_span());
  inside = Range::FromTo(first, end);
  sched::Yield("discard");
  auto guard = LockGrains(extent, {inside.offset + base, inside.length});
  auto tables = TRY(sparse.FindTables(inside.offset / g.table_span()));
  if (!tables) {
    if (may_be_absent) return Range{inside.offset + base, inside.length};
    tables = TRY(sparse.OwnTables(inside.offset));
  }
  std::vector<Grain> grains = TRY(sparse.Read(*tables, inside));
  inside.length = std::min(inside.length, grains.size() * g.grain);
  std::vector<SparseExtent::Update> updates;
  for (size_t i = 0; i < grains.size(); ++i) {
    Grain::Kind now = may_be_absent ? Grain::kHole : Grain::kZero;
    uint64_t index = (inside.offset / g.grain + i) % g.table_entries;
    if (grains[i].kind != now) updates.push_back({index, now == Grain::kZero ? 1u : 0u});
  }
  sparse.Write(*tables, updates);
  for (const Grain& grain : grains) {
    if (grain.kind == Grain::kData) sparse.Retire(grain.host);
  }
  return Range{inside.offset + base, inside.length};
}

}  // namespace platter::vmdk
