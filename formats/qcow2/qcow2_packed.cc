// ReservePacked: compressed units, laid out byte after byte.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "formats/qcow2/qcow2_bitmaps.h"
#include "formats/qcow2/qcow2_reservation.h"

namespace platter::qcow2 {

namespace {
constexpr uint64_t kMostPacked = 64 * kMiB;  // guest bytes of one reservation
}

Result<std::unique_ptr<Reservation>> Qcow2Layer::ReservePacked(Range units,
                                                               std::span<const uint32_t> sizes) {
  if (!info_.compressed_units) return Layer::ReservePacked(units, sizes);
  TRY(Named(CheckWritable(units)));
  CHECK(sizes.size() == DivideUp(units.length, cluster_size()));
  if (!IsAligned(units.offset, cluster_size()) ||
      (!IsAligned(units.end(), cluster_size()) && units.end() != info_.size)) {
    return Named(Result<std::unique_ptr<Reservation>>(
        Fail(Code::kOutOfRange, "{:#x}+{:#x} are no whole units", units.offset, units.length)));
  }
  uint64_t end = std::min(
      {units.end(), SliceEnd(units.offset), units.offset + std::max(cluster_size(), kMostPacked)});
  units = Range::FromTo(units.offset, end);
  sizes = sizes.first(DivideUp(units.length, cluster_size()));
  sched::Yield("reserve");
  auto reservation =
      std::make_unique<Qcow2Reservation>(*this, ranges_.Lock(units.Outward(cluster_size())));
  TRY(Named(PlanPacked(*reservation, units, sizes)));
  TRY(Named(bitmaps_->Mark(reservation->range_)));
  return std::unique_ptr<Reservation>(std::move(reservation));
}

Result<> Qcow2Layer::PlanPacked(Qcow2Reservation& reservation, Range units,
                                std::span<const uint32_t> sizes) {
  for (uint32_t size : sizes) {
    if (size > 0 && size <= cluster_size()) continue;
    return Fail(Code::kOutOfRange, "a compressed unit of {} bytes (1 to {})", size, cluster_size());
  }
  reservation.slice_ = TRY(OwnSlice(units.offset));
  std::vector<Cluster> clusters = TRY(ReadClusters(reservation.slice_, units));
  for (size_t i = 0; i < clusters.size(); ++i) {
    Result<> good = CheckOld(clusters[i], false);
    if (good.has_value()) continue;
    if (i == 0) return good;
    clusters.resize(i);
  }
  std::vector<uint64_t> places = TRY(allocator_->AllocatePacked(sizes.first(clusters.size())));
  for (size_t i = 0; i < places.size(); ++i) {
    uint64_t guest = units.offset + i * cluster_size();
    Range unit = Range{guest, cluster_size()}.Intersect(units), host{places[i], sizes[i]};
    reservation.packed_.push_back(host);
    reservation.target_.push_back(PackedExtent(unit, host));
    reservation.updates_.push_back(
        {Locate(guest).index, EncodeCompressed(format_, host.offset, sizes[i])});
    Range gone = HostOf(clusters[i]);
    if (!gone.empty()) reservation.old_.push_back(gone);
    reservation.range_ = Range::FromTo(units.offset, unit.end());
  }
  return {};
}

}  // namespace platter::qcow2
