// MapStore: the block map as a store of its own, in whole slices, for the table cache.
//
// The map ends where it ends: next to it may be the end of the file, or (in version 0) guest data
// that is no business of the cache. So bytes past the map read as entries that name nothing, and
// what is written there goes nowhere.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "io/iov.h"
#include "io/store.h"

namespace platter::vdi {

class MapStore final : public Store {
 public:
  // `file` outlives this.
  MapStore(Store& file, Range map, uint32_t slice_bytes)
      : file_(file), map_(map), size_(RoundUp(map.length, slice_bytes)) {}

  Caps caps() const override { return {}; }
  const std::string& name() const override { return file_.name(); }
  bool writable() const override { return file_.writable(); }
  Result<uint64_t> Size() const override { return size_; }
  using Store::Read;
  using Store::Write;

  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    const uint64_t length = IovLength(into), there = Inside(at, length);
    std::vector<iovec> part;
    if (there > 0) {
      IovSlice(into, 0, there, part);
      TRY(file_.Read(map_.offset + at, part));
    }
    part.clear();
    IovSlice(into, there, length - there, part);
    for (const iovec& rest : part) std::memset(rest.iov_base, 0xff, rest.iov_len);
    return {};
  }

  Result<> Write(uint64_t at, std::span<const iovec> from) override {
    std::vector<iovec> part;
    IovSlice(from, 0, Inside(at, IovLength(from)), part);
    if (part.empty()) return {};
    return file_.Write(map_.offset + at, part);
  }

  Result<> Sync() override { return file_.Sync(); }

  Result<> Zero(Range, bool) override { return NotOffered(); }
  Result<> Resize(uint64_t) override { return NotOffered(); }
  Result<> Allocate(Range) override { return NotOffered(); }
  Result<Run> FindRun(uint64_t at) override { return Run{size_ - at, true}; }

 private:
  uint64_t Inside(uint64_t at, uint64_t length) const {
    return at >= map_.length ? 0 : std::min(length, map_.length - at);
  }
  static Result<> NotOffered() {
    return Fail(Code::kUnsupported, "the block map has the size it has");
  }

  Store& file_;
  const Range map_;
  const uint64_t size_;
};

}  // namespace platter::vdi
