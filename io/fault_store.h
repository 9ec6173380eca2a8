// FaultStore: a store whose k-th call fails, for tests. (For power cuts: io/crash_store.h.)
//
//   for (uint64_t k = 0;; ++k) {
//     FaultPlan plan(k);
//     auto layer = Open(std::make_unique<FaultStore>(image.Clone(), plan));
//     ... operations, some of which fail; what succeeded must be there ...
//     if (!plan.fired()) break;  // fewer than k calls were made: every one has failed once
//   }
#pragma once

#include <cerrno>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "base/sync.h"
#include "io/store.h"

namespace platter {

// What fails, shared by the stores of one test, which it outlives. Any thread.
class FaultPlan {
 public:
  enum Kind : uint32_t {
    kRead = 1,
    kWrite = 2,
    kZero = 4,
    kSync = 8,
    kResize = 16,
    kAllocate = 32,
    kFindRun = 64,
    kSize = 128,
    kChanges = kWrite | kZero | kSync | kResize | kAllocate,
    kAny = 255,
  };

  // Nothing fails; calls are counted.
  FaultPlan() = default;
  // Of the calls of `kinds`, the `k`-th fails, counted from 0; with `for_ever`, all after it too.
  explicit FaultPlan(uint64_t k, uint32_t kinds = kAny, int error = EIO, bool for_ever = false)
      : fail_at_(k), kinds_(kinds), error_(error), for_ever_(for_ever) {}

  // True once a call has failed.
  bool fired() const;
  // Calls of `kinds` so far.
  uint64_t calls() const;
  // From here on nothing fails: for the reopening after the fault.
  void Disarm();

  // Counts a call; the errno it fails with, or 0.
  int Count(Kind kind);

 private:
  mutable Mutex mutex_;  // guards everything below; a leaf
  uint64_t fail_at_ = std::numeric_limits<uint64_t>::max();
  uint32_t kinds_ = kAny;
  int error_ = EIO;
  bool for_ever_ = false;
  uint64_t calls_ = 0;
  bool fired_ = false;
};

// A write or Zero that fails has changed nothing, half of its bytes, or all of them, in turn with
// the plan's k: all three are what a real device may have done.
class FaultStore final : public Store {
 public:
  FaultStore(std::unique_ptr<Store> inner, FaultPlan& plan);

  Caps caps() const override { return inner_->caps(); }
  const std::string& name() const override { return inner_->name(); }
  bool writable() const override { return inner_->writable(); }
  Result<uint64_t> Size() const override;
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override;
  Result<> Write(uint64_t at, std::span<const iovec> from) override;
  Result<> Zero(Range range, bool may_unmap) override;
  Result<> Sync() override;
  Result<> Resize(uint64_t size) override;
  Result<> Allocate(Range range) override;
  Result<Run> FindRun(uint64_t at) override;
  // TryRead serves nothing and fd() is -1, so that every read is a Read that may fail.

 private:
  Result<> Enter(FaultPlan::Kind kind, const char* verb) const;

  const std::unique_ptr<Store> inner_;
  FaultPlan& plan_;
};

}  // namespace platter
