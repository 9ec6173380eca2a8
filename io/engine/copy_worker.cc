#include "io/engine/copy_worker.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/check.h"
#include "io/iov.h"

namespace platter {
namespace {

// Reservations held at once at most; a job of more fragments is written in parts.
constexpr size_t kMostHeld = 128;

// Without units a hole is a system call each: for what is not zero yet, only long ones pay.
constexpr uint64_t kLeastZeroing = 64 * kKiB;

uint64_t BlockFor(const CopyOptions& options, uint64_t unit, uint64_t chunk) {
  if (unit != 0) return std::min(unit, chunk);
  uint64_t block = std::max<uint64_t>(options.sparse, 512);
  if (!options.target_is_zero) block = std::max(block, kLeastZeroing);
  return std::min(block, chunk);
}

}  // namespace

Codec::Id PackedCodec(const Info& info) {
  if (!info.compressed_units) return Codec::kNone;
  return FindCodec(info.compression);
}

CopyWorker::CopyWorker(CopyShared& shared)
    : shared_(shared),
      to_(shared.to),
      options_(shared.options),
      unit_(to_.info().unit),
      block_(BlockFor(options_, ZeroUnit(to_.info()), shared.plan.chunk())),
      detect_(options_.sparse != 0),
      ordered_(unit_ != 0),
      only_packed_(to_.info().only_packed),
      compress_(options_.compress || only_packed_) {
  Codec::Id codec = PackedCodec(to_.info());
  if (codec == Codec::kNone || unit_ > shared_.plan.chunk()) return;
  if (compress_ || options_.keep_packed) {
    pass_ = codec;
    pass_unit_ = static_cast<uint32_t>(unit_);
  }
  if (!compress_) return;
  auto compressor = Compressor::Create({.id = codec, .level = options_.level});
  if (!compressor) {
    broken_ = std::move(compressor.error());
    return;
  }
  compressor_ = std::move(*compressor);
  uint64_t units = DivideUp(shared_.plan.chunk(), unit_) + 1;
  packed_out_ = Buffer(units * PackedRoom());
}

// What a unit may become: worth packing if it gets smaller; else as large as a codec makes what
// does not compress, which is a few bytes in a block of some KiB.
size_t CopyWorker::PackedRoom() const {
  return only_packed_ ? unit_ + unit_ / 1024 + 64 : unit_ - 1;
}

void CopyWorker::Run() {
  if (broken_) return shared_.Stop(0, broken_->Clone());
  while (!shared_.stop) {
    auto job = NextJob();
    if (!job) return shared_.Stop(UINT64_MAX, std::move(job.error()));
    if (!*job) return;
    if (auto done = Do(**job); !done) return shared_.Stop((*job)->number, std::move(done.error()));
    if (options_.progress) options_.progress->done += (*job)->covered;
  }
}

Result<std::optional<CopyJob>> CopyWorker::NextJob() {
  std::lock_guard lock(shared_.plan_mutex);
  if (shared_.cancelled()) return Fail(Code::kRefused, "cancelled");
  return shared_.plan.Next();
}

Result<> CopyWorker::Do(CopyJob& job) {
  share_ = TRY(MayShare(job));
  if (share_) {
    segments_.clear();
    for (const CopyJob::Run& run : job.runs) {
      segments_.push_back({Segment::kPlain, run.guest, run.place, 0});
    }
  } else {
    TRY(Load(job));
    Sort(job);
  }
  return Place(job);
}

// ---- Into the target ----

// False if another worker failed, whose error is the one to tell.
bool CopyWorker::EnterTurn(const CopyJob& job) {
  if (ordered_ && !turn_) turn_ = shared_.turnstile.Enter(job.number);
  return turn_ || !ordered_;
}

Result<> CopyWorker::Place(const CopyJob& job) {
  if (!EnterTurn(job)) return {};
  for (Range zeros : job.zeros) TRY(Zero(to_, zeros, /*may_unmap=*/true));
  if (!options_.target_is_zero) {
    for (const Segment& segment : segments_) {
      if (segment.kind == Segment::kZero) TRY(Zero(to_, segment.guest, /*may_unmap=*/true));
    }
  }
  for (const Segment& segment : segments_) {
    if (segment.kind != Segment::kZero) TRY(ReserveSegment(job, segment));
  }
  turn_.Leave();
  return FinishHeld(job);
}

// Reserves room for all of the segment. What is held already is written first where the layer
// would make us wait for ourselves, where there are enough, or where no order is to be kept.
Result<> CopyWorker::ReserveSegment(const CopyJob& job, const Segment& segment) {
  for (Range rest = segment.guest; !rest.empty();) {
    uint64_t unit = std::max<uint64_t>(unit_, 1);
    bool same_unit = !held_.empty() && RoundUp(held_.back().asked_end, unit) > rest.offset;
    if (same_unit || held_.size() >= kMostHeld || !ordered_) TRY(FinishHeld(job));
    std::unique_ptr<Reservation> reservation;
    if (segment.kind == Segment::kPacked) {
      size_t first = segment.first_unit + (rest.offset - segment.guest.offset) / unit_;
      std::vector<uint32_t> sizes;
      for (size_t i = 0; i < DivideUp(rest.length, unit_); ++i) {
        sizes.push_back(static_cast<uint32_t>(units_[first + i].bytes.size()));
      }
      reservation = TRY(to_.ReservePacked(rest, sizes));
    } else {
      reservation = TRY(to_.Reserve(rest));
    }
    Range given = reservation->range();
    CHECK(given.offset == rest.offset && !given.empty() && given.length <= rest.length);
    held_.push_back({std::move(reservation), &segment, rest.end()});
    rest = Range::FromTo(given.end(), rest.end());
  }
  return {};
}

// Writes and publishes what is held. A reservation goes as soon as it is published: others wait.
Result<> CopyWorker::FinishHeld(const CopyJob& job) {
  for (Held& held : held_) {
    if (held.segment->kind == Segment::kPacked) {
      TRY(WritePacked(held));
    } else if (share_) {
      TRY(ShareBlocks(job, held));
    } else {
      TRY(WritePlain(held));
    }
    TRY(held.reservation->Publish());
    held.reservation = nullptr;
  }
  held_.clear();
  return {};
}

Result<> CopyWorker::WritePlain(Held& held) {
  Range range = held.reservation->range();
  size_t place = held.segment->place + (range.offset - held.segment->guest.offset);
  iovec data{buffer_.data() + place, range.length};
  return FillReservation(to_, *held.reservation, std::span<const iovec>(&data, 1));
}

Result<> CopyWorker::WritePacked(Held& held) {
  std::span<const Extent> target = held.reservation->target();
  size_t unit = held.segment->first_unit +
                (held.reservation->range().offset - held.segment->guest.offset) / unit_;
  std::vector<iovec> together;
  for (size_t i = 0; i < target.size();) {
    together.clear();
    uint64_t at = target[i].host.offset, end = at;
    const size_t first = i;
    while (i < target.size() && target[i].store == target[first].store &&
           target[i].host.offset == end) {
      ConstBytes bytes = units_[unit++].bytes;
      together.push_back({const_cast<std::byte*>(bytes.data()), bytes.size()});
      end += bytes.size();
      ++i;
    }
    TRY(target[first].store->Write(at, together));
  }
  return {};
}

// ---- Sharing blocks ----
//
// Where both sides are files of one filesystem that can share blocks, no byte need be read. Zeros
// are not looked for then: they cost nothing.

namespace {

// Of data, or of targets.
bool CanShare(std::span<const Extent> extents) {
  return std::ranges::all_of(extents, [](const Extent& extent) {
    return !extent.packed() && !extent.codec.cipher && extent.store->fd() >= 0 &&
           extent.store->caps().reflink;
  });
}

bool OnOneFilesystem(const Store& a, const Store& b) {
  struct stat first, second;
  return fstat(a.fd(), &first) == 0 && fstat(b.fd(), &second) == 0 && first.st_dev == second.st_dev;
}

// False if the kernel would not.
bool CopyFileRange(const Store& from, uint64_t at, const Store& to, Range range) {
  auto in = static_cast<off_t>(from.fd_offset() + at);
  auto out = static_cast<off_t>(to.fd_offset() + range.offset);
  while (range.length > 0) {
    ssize_t copied = copy_file_range(from.fd(), &in, to.fd(), &out, range.length, 0);
    if (copied <= 0) return false;
    range.length -= static_cast<uint64_t>(copied);
  }
  return true;
}

// The parts of `extents` inside `range`.
std::vector<Extent> Cut(std::span<const Extent> extents, Range range) {
  std::vector<Extent> cut;
  for (const Extent& extent : extents) {
    Range both = extent.guest.Intersect(range);
    if (both.empty()) continue;
    cut.push_back(
        ExtentPrefix(ExtentSuffix(extent, both.offset - extent.guest.offset), both.length));
  }
  return cut;
}

}  // namespace

Result<bool> CopyWorker::MayShare(const CopyJob& job) {
  using Sharing = CopyShared::Sharing;
  if (shared_.sharing == Sharing::kNo || compress_ || job.runs.empty()) return false;
  if (!detect_) return false;  // holes in the source's file would be shared as well
  if (!std::ranges::all_of(job.extents, IsPlain) || !CanShare(job.extents)) return false;
  if (shared_.sharing == Sharing::kUnknown) {
    if (!EnterTurn(job)) return false;
    // Asked of a reservation that is given back: only there does the target show its store.
    auto probe = TRY(to_.Reserve(job.runs.front().guest));
    std::span<const Extent> target = probe->target();
    bool can =
        CanShare(target) && OnOneFilesystem(*job.extents.front().store, *target.front().store);
    if (shared_.sharing == Sharing::kUnknown) shared_.sharing = can ? Sharing::kYes : Sharing::kNo;
  }
  return shared_.sharing == Sharing::kYes;
}

// The bytes of one reservation; through the buffer where the kernel will not share them.
Result<> CopyWorker::ShareBlocks(const CopyJob& job, Held& held) {
  const Range range = held.reservation->range();
  std::vector<Extent> source = Cut(job.extents, range);
  std::span<const Extent> target = held.reservation->target();
  bool shared = held.reservation->fill().empty() && CanShare(target);
  for (size_t i = 0; shared && i < source.size(); ++i) {
    for (const Extent& to : Cut(target, source[i].guest)) {
      uint64_t skip = to.guest.offset - source[i].guest.offset;
      shared = shared &&
               CopyFileRange(*source[i].store, source[i].host.offset + skip, *to.store, to.host);
    }
  }
  if (shared) return {};
  if (buffer_.size() < job.buffer) buffer_ = Buffer(shared_.plan.chunk() + unit_);
  reader_.Forget();
  TRY(LoadGroup(source, held.segment->place + (range.offset - held.segment->guest.offset)));
  return WritePlain(held);
}

}  // namespace platter
