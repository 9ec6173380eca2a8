// The first half of a copy job: the source's bytes into memory.
#include <algorithm>

#include "base/check.h"
#include "io/engine/copy_worker.h"

namespace platter {
namespace {

// Damaged plain ranges are read again in pieces this small, bytes; a unit is lost as a whole.
constexpr uint64_t kSalvagePiece = 4 * kKiB;

}  // namespace

// True if the packed unit can go to the target as it is.
bool CopyWorker::CanPass(const Extent& extent) const {
  bool whole = extent.codec.skip == 0 &&
               (extent.guest.length == pass_unit_ || extent.guest.end() == to_.info().size);
  return pass_ != Codec::kNone && extent.kind == Kind::kData && extent.codec.id == pass_ &&
         extent.codec.unit == pass_unit_ && IsAligned(extent.guest.offset, pass_unit_) && whole &&
         extent.host.length <= 2 * uint64_t{pass_unit_};
}

Result<> CopyWorker::Load(const CopyJob& job) {
  passed_.clear();
  next_passed_ = 0;
  reader_.Forget();  // another Pin
  // A short last unit is packed as if zeros followed.
  if (buffer_.size() < job.buffer + unit_) buffer_ = Buffer(shared_.plan.chunk() + unit_);
  uint64_t packed = 0, moved = 0;
  for (const Extent& extent : job.extents) {
    if (CanPass(extent)) packed += extent.host.length;
    if (extent.kind == Kind::kData) moved += extent.guest.length;
  }
  if (packed_in_.size() < packed) packed_in_ = Buffer(packed);
  shared_.rate.Take(moved, shared_.stop);
  if (options_.progress) options_.progress->moved += moved;

  size_t packed_used = 0;
  for (const CopyJob::Run& run : job.runs) {
    std::span<const Extent> extents = std::span(job.extents).subspan(run.first, run.count);
    size_t place = run.place;
    while (!extents.empty()) {
      if (CanPass(extents.front())) {
        TRY(LoadPassed(extents.front(), place, packed_used));
        place += extents.front().guest.length;
        extents = extents.subspan(1);
        continue;
      }
      auto end = std::ranges::find_if(extents, [&](const Extent& e) { return CanPass(e); });
      std::span<const Extent> group = extents.first(end - extents.begin());
      TRY(LoadGroup(group, place));
      place += group.back().guest.end() - group.front().guest.offset;
      extents = extents.subspan(group.size());
    }
  }
  return {};
}

Result<> CopyWorker::LoadGroup(std::span<const Extent> extents, size_t place) {
  iovec into{buffer_.data() + place, extents.back().guest.end() - extents.front().guest.offset};
  auto done = reader_.Read(extents, std::span<const iovec>(&into, 1), 0);
  if (done || !options_.salvage) return done;
  for (const Extent& extent : extents) {
    TRY(LoadOneSalvaging(extent, place));
    place += extent.guest.length;
  }
  return {};
}

// As much of `extent` as can be read, zeros for the rest, which is told.
Result<> CopyWorker::LoadOneSalvaging(const Extent& extent, size_t place) {
  reader_.Forget();
  uint64_t step = extent.packed() ? extent.guest.length : kSalvagePiece;
  Range lost;
  std::optional<Error> why;
  auto tell = [&] {
    if (!lost.empty()) shared_.Unreadable(lost, *why);
    lost = {};
  };
  for (uint64_t at = 0; at < extent.guest.length;) {
    Extent rest = ExtentSuffix(extent, at);
    uint64_t end = std::min(RoundDown(rest.guest.offset, step) + step, rest.guest.end());
    Extent part = ExtentPrefix(rest, extent.packed() ? rest.guest.length : end - rest.guest.offset);
    Bytes bytes = buffer_.bytes().subspan(place + at, part.guest.length);
    iovec into{bytes.data(), bytes.size()};
    auto done = reader_.Read(std::span(&part, 1), std::span<const iovec>(&into, 1), 0);
    if (done) {
      tell();
    } else {
      std::ranges::fill(bytes, std::byte{0});
      lost = Range::FromTo(lost.empty() ? part.guest.offset : lost.offset, part.guest.end());
      why = std::move(done.error());
    }
    at += part.guest.length;
  }
  tell();
  return {};
}

// Reads a unit that stays packed. It is unpacked all the same: a stream that cannot be must fail
// here and not in the copy, and only this tells where in its host range it ends.
Result<> CopyWorker::LoadPassed(const Extent& extent, size_t place, size_t& packed_used) {
  Bytes packed = packed_in_.bytes().subspan(packed_used, extent.host.length);
  packed_used += packed.size();
  // The last unit is longer than the disk; what follows the disk's end goes into the spare room.
  Bytes unit = buffer_.bytes().subspan(place, pass_unit_);
  auto load = [&]() -> Result<size_t> {
    TRY(extent.store->Read(extent.host.offset, packed));
    return Decompress(pass_, packed, unit);
  };
  auto used = load();
  if (used) {
    passed_.push_back({extent.guest, packed.first(*used)});
    return {};
  }
  if (!options_.salvage) {
    return std::unexpected(std::move(used.error())
                               .WithPrefix(fmt::format("compressed unit at {:#x} of '{}'",
                                                       extent.host.offset, extent.store->name())));
  }
  std::ranges::fill(unit.first(extent.guest.length), std::byte{0});
  shared_.Unreadable(extent.guest, used.error());
  return {};
}

}  // namespace platter
