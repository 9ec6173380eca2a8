// FixedVhd: guest byte n is host byte n, and a footer stands behind the last one. Nothing to lock,
// to publish or to flush but the file; only resizing touches the footer.
#pragma once

#include <memory>

#include "formats/vhd/vhd_parse.h"
#include "io/layer.h"
#include "io/store.h"

namespace platter::vhd {

class FixedVhd final : public Layer, private Resizer {
 public:
  // `info.size` bytes of the store are the guest's.
  FixedVhd(std::unique_ptr<Store> store, Footer footer, Info info);

  const Info& info() const override { return info_; }
  Pin Hold() override { return {}; }
  Result<size_t> Map(Range want, std::span<Extent> out) override;
  size_t TryMap(Range want, std::span<Extent> out) override;
  Result<std::unique_ptr<Reservation>> Reserve(Range want) override;
  Result<Range> Discard(Range want, Kind leave) override;
  Result<> Flush() override { return store_->Sync(); }
  Resizer* resizer() override { return resizable_ ? this : nullptr; }

 private:
  Result<> Resize(uint64_t size, Preallocation preallocation) override;
  Result<> CheckInside(Range want) const;
  Result<> CheckWritable() const;
  Extent DataAt(Range guest) const;

  const std::unique_ptr<Store> store_;
  const bool resizable_;
  Footer footer_;
  Info info_;
};

}  // namespace platter::vhd
