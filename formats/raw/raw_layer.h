// RawLayer: guest byte n is host byte n.
//
// There is no metadata, hence nothing to lock, to publish or to flush but the file itself, and
// freed space is never given to anybody else: no pins. Every byte of a writable raw image may be
// overwritten in place. Map still answers kHole for what the file system has not allocated, so
// that readers skip it; a writer that meets a hole goes through Reserve, which names the place
// itself and asks for no fill. Two such reservations may overlap without harm: neither holds
// bytes but its own.
//
// An image whose format was guessed (OpenOptions::guessed) has its first and last bytes behind a
// HeadGuard: see head_guard.h.
#pragma once

#include <memory>

#include "formats/format.h"
#include "formats/raw/head_guard.h"
#include "io/layer.h"
#include "io/store.h"

namespace platter {

class RawLayer final : public Layer, private Resizer {
 public:
  struct Parts {
    std::unique_ptr<Store> store;  // holds the guest's bytes and nothing else
    uint32_t sector = 512;         // bytes
    bool writable = false;
    bool resizable = true;  // false for a window of something larger
    bool guarded = false;   // see HeadGuard
  };
  static Result<std::unique_ptr<Layer>> Open(Parts parts);

  const Info& info() const override { return info_; }
  Pin Hold() override { return {}; }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  // One extent of data for everything: it costs no system call, and holes read as zeros from the
  // file as well. Who wants to know about holes calls Map.
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override { return store_->Sync(); }
  Resizer* resizer() override { return resizable_ ? this : nullptr; }

 private:
  RawLayer(Parts parts, uint64_t size);
  Result<> Resize(uint64_t size, Preallocation preallocation) override;
  Result<> CheckInside(Range want) const;
  // The first bytes of `guest` as data: as many as one store answers for.
  Extent DataAt(Range guest) const;

  const std::unique_ptr<Store> store_;
  const std::unique_ptr<HeadGuard> guard_;  // of store_; null: nothing is guarded
  const bool resizable_;
  Info info_;
};

}  // namespace platter
