// Writing: in place where the layer says so, else reserve, move, publish.
//
// A request is cut where Map's answer changes. Runs of writable extents are overwritten in place
// under the Pin. Everything else (holes, zeros, the parent's bytes, packed units, shared clusters,
// encrypted sectors) goes through a Reservation, with no Pin and no lock of the layer held: move
// the data, and what the format asks to be copied up around it, into space that nobody sees, then
// Publish. No step waits for a guest's data while holding anything that another request needs,
// except the reservation itself.
//
// What could go wrong, and why it does not:
//
// Two writers, one fresh cluster, different bytes. Each would copy the other's bytes up as they
// were before, and the later Publish would lose the earlier one's acknowledged data. The second
// Reserve waits until the first reservation is gone; and the fill is read *after* Reserve returned,
// through a new Map, never from the extents that led to the Reserve: those may be older than the
// first writer's Publish. When the second Reserve returns, the cluster has become writable, and
// the layer gives it in place with no fill.
//
// A writer in place against Discard, or against ReservePacked, which replaces whole units. The
// writer mapped cluster X under its Pin; meanwhile X is dropped, and a third writer gets its guest
// bytes a new cluster Y. Our bytes land in X. Nobody reads them, and nobody else's bytes are in X,
// because X is in quarantine while our Pin lives. The result is that of our write having come
// before the Discard; we had not returned yet when it began, so that order is right.
//
// A writer in place against a reservation that copies the same cluster up. It would copy bytes
// while we change them, and publish the old ones. It cannot be: what is writable in place is given
// in place, so only bytes that nobody may overwrite are ever copied up. (A snapshot, which makes
// writable clusters shared, excludes all requests while it is taken.)
//
// A reader against a writer. Before Publish the reader's Map names the old bytes, afterwards the
// new ones, which are all there. The old ones stay untouched while its Pin lives.
//
// A failed write. Data or fill did not arrive: the reservation is dropped, the space given back,
// the old bytes are still the disk's content. A failure in place leaves each byte old or new. Parts
// of a request before the failing one stay written, which the contract of Write allows.
//
// Flush against Publish. Publish changes tables in memory only, after the data was written; a Flush
// that sees the change in the tables therefore has the data before its first barrier.
//
// Encrypted sectors. The cipher's unit is 512 bytes: a write of fewer rewrites the rest of its
// sector, so two of them in one sector must not overlap in time. No encrypted extent is writable;
// Reserve gives the sectors in place, with the rest of the first and last one as fill, and makes
// overlapping ones wait. A reader of a sector that is being written may see it torn, and with a
// cipher torn bytes are garbage rather than old or new; disks promise nothing better for a read
// that overlaps a write of the same sector.
//
// Deadlock. A request holds at most one reservation and no Pin while it waits for one; what it does
// while holding it (Read of the fill, Store I/O) waits for no reservation.
#include <array>

#include "base/check.h"
#include "io/engine/engine.h"
#include "io/engine/extent_io.h"
#include "io/iov.h"
#include "io/store.h"

namespace platter {
namespace {

// One request being written.
class Writer {
 public:
  Writer(Layer& layer, Range range, std::span<const iovec> from)
      : layer_(layer), range_(range), from_(from) {}

  Result<> Run() {
    while (done_ < range_.length) {
      Range reserve = TRY(WriteInPlace());
      if (!reserve.empty()) TRY(WriteReserved(reserve));
    }
    return {};
  }

 private:
  // Overwrites the writable extents that come next; returns the run after them that needs a
  // reservation, as far as one Map showed it (maybe nothing).
  Result<Range> WriteInPlace() {
    std::array<Extent, kMapBatch> extents;
    Pin pin = layer_.Hold();
    Range rest = Rest();
    size_t count = TRY(layer_.Map(rest, extents)), i = 0;
    CHECK(count > 0);
    while (i < count && extents[i].writable) {
      size_t first = i++;
      while (i < count && extents[i].writable && ContinuesPlain(extents[i - 1], extents[i])) ++i;
      uint64_t length = extents[i - 1].guest.end() - extents[first].guest.offset;
      TRY(extents[first].store->Write(extents[first].host.offset, Slice(length)));
      done_ += length;
    }
    uint64_t end = Rest().offset;
    for (; i < count && !extents[i].writable; ++i) end = extents[i].guest.end();
    return Range::FromTo(Rest().offset, end);
  }

  Result<> WriteReserved(Range want) {
    auto reservation = TRY(layer_.Reserve(want));
    Range given = reservation->range();
    CHECK(given.offset == want.offset && !given.empty() && given.length <= want.length);
    TRY(FillReservation(layer_, *reservation, Slice(given.length)));
    TRY(reservation->Publish());
    done_ += given.length;
    return {};
  }

  Range Rest() const { return Range::FromTo(range_.offset + done_, range_.end()); }
  std::span<const iovec> Slice(uint64_t length) {
    if (length == range_.length) return from_;
    slice_.clear();
    IovSlice(from_, done_, length, slice_);
    return slice_;
  }

  Layer& layer_;
  const Range range_;
  const std::span<const iovec> from_;
  uint64_t done_ = 0;  // bytes of the request
  std::vector<iovec> slice_;
};

}  // namespace

Result<> Write(Layer& layer, uint64_t at, std::span<const iovec> from) {
  uint64_t length = IovLength(from);
  if (length == 0) return {};
  {
    // Most writes are small and lie in one extent that is there already.
    Pin pin = layer.Hold();
    Extent first;
    if (layer.TryMap({at, length}, std::span(&first, 1)) == 0) {
      TRY(layer.Map({at, length}, std::span(&first, 1)));
    }
    if (first.writable && first.guest.length == length) {
      return first.store->Write(first.host.offset, from);
    }
  }
  return Writer(layer, {at, length}, from).Run();
}

Result<> Write(Layer& layer, uint64_t at, ConstBytes from) {
  iovec one{const_cast<std::byte*>(from.data()), from.size()};
  return Write(layer, at, std::span<const iovec>(&one, 1));
}

}  // namespace platter
