// Layer: the contract between formats, which say where bytes are, and the engine, which moves them.
//
//   "A format says where bytes are; one engine moves them; a write becomes visible only when it is
//   whole."
//
// Reading: Hold() a Pin, Map() guest bytes to Extents, read the extents' host bytes (io/engine
// does), drop the Pin. Writing to bytes that Map calls writable needs no more than that. Writing
// anywhere else goes Reserve -> move the data, and the fill -> Publish: until Publish returns, no
// reader sees anything of it, and a reservation that is dropped instead gives its space back.
//
// A chain of layers is itself a Layer (cow/Disk): its Map has no kParent left in it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/range.h"
#include "base/result.h"
#include "io/info.h"
#include "io/pin.h"

namespace platter {

class Cipher;
class Store;

enum class Kind : uint8_t {
  kData,    // bytes are at store/host, through the codec
  kZero,    // reads as zeros; a decision of this layer, maybe with space allocated
  kHole,    // reads as zeros because nothing is there
  kParent,  // this layer has nothing here: ask the layer below; zeros if there is none
};

// How host bytes become guest bytes.
struct Codec {
  enum Id : uint8_t {
    kNone,
    kDeflate,  // RFC 1951
    kZstd,     // RFC 8878
    kZlib,     // RFC 1950: deflate with a checksum
  } id = kNone;
  // For all but kNone: the host range holds one packed unit of `unit` guest bytes (the
  // compressed stream may be followed by bytes that are not its own), and the extent's first
  // guest byte is the unit's byte `skip`.
  uint32_t unit = 0;
  uint32_t skip = 0;
  // Set: host bytes are encrypted, sector by sector (io/codec/cipher.h). Never with a packed unit.
  const Cipher* cipher = nullptr;

  friend bool operator==(const Codec&, const Codec&) = default;
};

// What one run of guest bytes means. Everything the engine needs: nothing is looked up twice.
struct Extent {
  Range guest;
  Kind kind = Kind::kHole;
  // Plain kData that may be overwritten in place while the Pin lives. Never set with a codec:
  // packed units and encrypted sectors are written through a Reservation.
  bool writable = false;
  uint8_t depth = 0;       // which layer of a chain answered: 0 is the top
  Store* store = nullptr;  // kData (and preallocated kZero): valid while the Pin lives
  Range host;              // host.length == guest.length unless codec.id says packed
  Codec codec;

  bool packed() const { return codec.id != Codec::kNone; }
};

// Space for new bytes, unseen by readers. Made by Layer::Reserve. Destroying it without Publish
// gives the space back. Used by one thread at a time.
//
// A thread that holds some may reserve only what lies behind all of them, as a copy does that goes
// through the disk. Then waiting for overlapping ones cannot close a circle (io/range_lock.h says
// why); reserving further to the front can, and deadlock.
class Reservation {
 public:
  virtual ~Reservation() = default;

  // What was reserved: starts where the request starts; may be shorter, never empty.
  virtual Range range() const = 0;

  // Where the new bytes of range() and of fill() go: ascending by guest offset and covering
  // exactly their union. Extents may be plain or encrypted; packed ones come from ReservePacked,
  // one extent a unit. Those of kind kZero read as zeros already: zeros need not be put there.
  virtual std::span<const Extent> target() const = 0;

  // Guest bytes outside range() that must be copied from the old view into target() before
  // Publish, because the format's allocation unit is coarser than the request.
  virtual std::span<const Range> fill() const = 0;

  // Makes the new bytes the disk's content. At most once, last. In-memory only: durable after
  // Layer::Flush.
  virtual Result<> Publish() = 0;
};

// Thread rule for every call, unless it says otherwise: any thread, any number at once. What
// changes structure (Resizer, snapshots, bitmaps, repair) excludes everything else. A Disk sees to
// that itself: it waits until no Pin and no Reservation is left, so there Map goes under a Pin
// (cow/disk.h). A layer alone has no lock for it: whoever opened it sees to it that nothing else
// uses it meanwhile.
class Layer {
 public:
  virtual ~Layer() = default;

  virtual const Info& info() const = 0;

  // While the Pin lives, host space named by a Map made under it is not reused. Hold pins for the
  // time of one request, not longer: freed space waits for them.
  virtual Pin Hold() = 0;

  // Describes guest bytes from want.offset on: ascending, contiguous, at least one byte, at most
  // `want`, as many extents as `out` takes; returns how many. Neighbours that continue one another
  // are merged. kOutOfRange if `want` is empty or not inside the disk; `out` holds at least one.
  virtual Result<size_t> Map(Range want, std::span<Extent> out) = 0;

  // As Map from what is in memory, without waiting; 0 where it would have to read. Never fails.
  virtual size_t TryMap(Range want, std::span<Extent> out) {
    (void)want, (void)out;
    return 0;
  }

  // Reserves space for new bytes. Waits for an overlapping Reservation or Discard of another
  // thread; the caller's own Reservations all lie in front of `want`. A part of the
  // range that is (by now) writable in place is given in place. kReadOnly, kNoSpace, kOutOfRange.
  virtual Result<std::unique_ptr<Reservation>> Reserve(Range want) = 0;

  // Reserves packed units, laid out one after the other: unit i of `units` (whole units of
  // info().unit bytes; the disk's last may be short) gets sizes[i] bytes, compressed as
  // info().compression. sizes[i] > 0. Units that hold something are replaced. Covers as many
  // whole units as fit, at least one: see range().
  virtual Result<std::unique_ptr<Reservation>> ReservePacked(Range units,
                                                             std::span<const uint32_t> sizes);

  // Drops content: the aligned part of `want` that now reads as `leave` (kZero, kHole: zeros;
  // kParent: what is below), which may be empty and is contiguous, starting at or after
  // want.offset. The caller writes zeros to the rest, or leaves it. Waits for overlapping
  // reservations.
  virtual Result<Range> Discard(Range want, Kind leave) = 0;

  // What was published before the call survives a power cut after it: metadata in dependency
  // order, then Sync. One at a time inside; any thread may call.
  virtual Result<> Flush() = 0;

  // Small interfaces that a layer may offer; null where it does not. Asked for once, at open.
  virtual class Resizer* resizer() { return nullptr; }
  virtual class Snapshotter* snapshotter() { return nullptr; }
  virtual class Bitmapper* bitmapper() { return nullptr; }

  // Where the engine keeps unpacked units between two reads; null: nowhere.
  virtual class UnitCache* unit_cache() { return nullptr; }
};

enum class Preallocation : uint8_t { kOff, kMetadata, kFalloc, kFull };

// Changes the guest size. Exclusive: nothing else uses the layer meanwhile.
class Resizer {
 public:
  virtual ~Resizer() = default;
  // Shrinking drops what lies past the new end. Crash-safe: old size or new size.
  virtual Result<> Resize(uint64_t size, Preallocation preallocation) = 0;

  // Grows to `size` over a longer parent: `hidden`, which starts at the old end, reads as zeros
  // from the moment that the new size is there, whatever the layer below holds. The unit in which
  // the old end lies is this layer's own, or the end is at its border. kUnsupported where the
  // format cannot say that beforehand: the disk is as it was, and whoever calls resizes, then
  // zeroes.
  virtual Result<> GrowOver(Range hidden, uint64_t size, Preallocation preallocation) {
    (void)hidden, (void)size, (void)preallocation;
    return Fail(Code::kUnsupported, "zeros past the end of the disk");
  }
};

// Snapshots that an image holds inside itself. Exclusive: nothing else uses the layer meanwhile.
// What was written before a call is in it; a crash leaves the snapshots of before or of after the
// call. Changes are durable on return, and info().snapshots and info().size say what is there now.
class Snapshotter {
 public:
  virtual ~Snapshotter() = default;
  // `name`: not empty, and of none that is there (kRefused).
  virtual Result<> CreateSnapshot(const std::string& name) = 0;
  // The disk reads as `wanted` (an id, else a name) does; what it held since is dropped.
  virtual Result<> ApplySnapshot(const std::string& wanted) = 0;
  // A name, else an id: as qemu-img does.
  virtual Result<> DeleteSnapshot(const std::string& wanted) = 0;
};

}  // namespace platter
