// Inside the engine: bytes from extents, and bytes to extents. What Read, Write and Copy share.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "io/buffer.h"
#include "io/layer.h"
#include "io/ring.h"
#include "io/store.h"
#include "io/unit_cache.h"

namespace platter {

// Bytes of scratch through which encrypted data moves, in pieces.
inline constexpr size_t kBounceSize = 256 * kKiB;
// Extents asked for by one Map.
inline constexpr size_t kMapBatch = 32;

// kZero, kHole and, where nothing is below, kParent.
inline bool ReadsAsZero(const Extent& extent) { return extent.kind != Kind::kData; }

// Host bytes are guest bytes.
inline bool IsPlain(const Extent& extent) {
  return extent.kind == Kind::kData && !extent.packed() && extent.codec.cipher == nullptr;
}

// True if b's plain host bytes follow a's.
inline bool ContinuesPlain(const Extent& a, const Extent& b) {
  return IsPlain(a) && IsPlain(b) && a.store == b.store && a.host.end() == b.host.offset &&
         a.guest.end() == b.guest.offset;
}

// The first `length` bytes of `from` (a packed unit's host bytes stay whole), or what follows them.
Extent ExtentPrefix(Extent from, uint64_t length);
Extent ExtentSuffix(Extent from, uint64_t skip);

// Reads extents into scatter lists and keeps its scratch memory for the next call. One thread.
// The Pin under which the extents were mapped lives until Read returns.
class ExtentReader {
 public:
  ExtentReader() = default;
  // For extents that are mapped under `pin`: of units read in part, more or all is kept in `cache`
  // (null: nowhere) for later readers. Both are borrowed.
  ExtentReader(UnitCache* cache, const Pin& pin) : cache_(cache), pin_(&pin) {}

  // Reads `extents` (guest-contiguous) to `into`, from its byte `skip` on. `more`: the next call
  // continues this one under the same Pin, so the last packed unit is worth keeping.
  Result<> Read(std::span<const Extent> extents, std::span<const iovec> into, uint64_t skip,
                bool more = false);

  // The Pin goes: the kept unit may be replaced by another one at the same place.
  void Forget() { unit_store_ = nullptr; }

 private:
  struct Op {  // one store read, into pieces_[first, first + count)
    Store* store;
    uint64_t host, length;
    size_t first, count;
  };
  struct Sectors {  // to be decrypted where they lie, once read
    const Cipher* cipher;
    uint64_t sector;
    Bytes bytes;
  };

  void AddPlain(const Extent& extent, std::span<const iovec> into, uint64_t skip);
  Result<> ReadEncrypted(const Extent& extent, std::span<const iovec> into, uint64_t skip);
  Result<> ReadPacked(const Extent& extent, std::span<const iovec> into, uint64_t skip, bool keep);
  Result<bool> ReadCached(const Extent& extent, std::span<const iovec> slice);
  Result<> Unpack(const Extent& extent, Bytes unit);
  Result<> RunOps();

  UnitCache* const cache_ = nullptr;
  const Pin* const pin_ = nullptr;
  std::vector<iovec> pieces_;
  std::vector<Op> ops_;
  std::vector<StoreRequest> requests_;  // the same, when there are several
  std::vector<Sectors> encrypted_;
  Buffer bounce_;  // encrypted sectors
  Buffer packed_;  // host bytes of a packed unit
  Buffer unit_;    // the last unit, unpacked: what host bytes of which store it was
  Store* unit_store_ = nullptr;
  Range unit_host_;
  uint64_t unit_length_ = 0;  // bytes of it that are unpacked
};

// Writes `from`, whose length is that of all `target` extents (guest-contiguous, plain or
// encrypted), with one vector write for each host-contiguous run.
Result<> WriteExtents(std::span<const Extent> target, std::span<const iovec> from);

// The same for the part of the targets that holds guest bytes `part`.
Result<> WriteExtents(std::span<const Extent> target, Range part, std::span<const iovec> from);

// Puts `data` (the bytes of reservation.range()) and the fill (read from `layer` as it is now)
// into the reservation's targets. The caller publishes.
Result<> FillReservation(Layer& layer, Reservation& reservation, std::span<const iovec> data);

// How many workers a copy or comparison of `length` bytes gets.
unsigned WorkerCount(const struct CopyOptions& options, uint64_t length);

// What the first sector of an extent's host bytes is called by its cipher.
uint64_t SectorNumber(const Extent& extent);

}  // namespace platter
