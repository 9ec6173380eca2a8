// Layers and stores that yield to the scheduler at each call of the contract.
#pragma once

#include <memory>
#include <utility>

#include "base/sync.h"
#include "io/testing/wrapper_layer.h"
#include "io/testing/wrapper_store.h"

namespace platter::schedule {

class YieldStore : public WrapperStore {
 public:
  using Store::Read;
  using Store::Write;
  using WrapperStore::WrapperStore;
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    sched::Yield("read");
    return base_.Read(at, into);
  }
  Result<> Write(uint64_t at, std::span<const iovec> from) override {
    sched::Yield("write");
    return base_.Write(at, from);
  }
  Result<> Sync() override {
    sched::Yield("sync");
    return base_.Sync();
  }
};

class YieldLayer : public WrapperLayer {
 public:
  using WrapperLayer::WrapperLayer;
  Pin Hold() override {
    sched::Yield("hold");
    return base_.Hold();
  }
  Result<size_t> Map(Range want, std::span<Extent> out) override {
    sched::Yield("map");
    return base_.Map(want, out);
  }
  Result<std::unique_ptr<platter::Reservation>> Reserve(Range want) override {
    sched::Yield("reserve");
    return std::make_unique<Reservation>(TRY(base_.Reserve(want)));
  }
  Result<Range> Discard(Range want, Kind leave) override {
    sched::Yield("discard");
    return base_.Discard(want, leave);
  }
  Result<> Flush() override {
    sched::Yield("flush");
    return base_.Flush();
  }

 private:
  struct Reservation final : platter::Reservation {
    explicit Reservation(std::unique_ptr<platter::Reservation> inner) : base(std::move(inner)) {}
    ~Reservation() override { sched::Yield("drop"); }
    Range range() const override { return base->range(); }
    std::span<const Extent> target() const override { return base->target(); }
    std::span<const Range> fill() const override { return base->fill(); }
    Result<> Publish() override {
      sched::Yield("publish");
      return base->Publish();
    }
    std::unique_ptr<platter::Reservation> base;
  };
};

}  // namespace platter::schedule
