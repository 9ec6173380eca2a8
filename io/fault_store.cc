#include "io/fault_store.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "io/iov.h"

namespace platter {

bool FaultPlan::fired() const {
  std::lock_guard lock(mutex_);
  return fired_;
}

uint64_t FaultPlan::calls() const {
  std::lock_guard lock(mutex_);
  return calls_;
}

void FaultPlan::Disarm() {
  std::lock_guard lock(mutex_);
  kinds_ = 0;
}

int FaultPlan::Count(Kind kind) {
  std::lock_guard lock(mutex_);
  if ((kinds_ & kind) == 0) return 0;
  uint64_t call = calls_++;
  if (call != fail_at_ && !(for_ever_ && call > fail_at_)) return 0;
  fired_ = true;
  return error_;
}

FaultStore::FaultStore(std::unique_ptr<Store> inner, FaultPlan& plan)
    : inner_(std::move(inner)), plan_(plan) {}

Result<> FaultStore::Enter(FaultPlan::Kind kind, const char* verb) const {
  int error = plan_.Count(kind);
  if (error == 0) return {};
  return FailErrno(error, "'{}': injected failure of {}", name(), verb);
}

Result<uint64_t> FaultStore::Size() const {
  TRY(Enter(FaultPlan::kSize, "size"));
  return inner_->Size();
}

Result<> FaultStore::Read(uint64_t at, std::span<const iovec> into) {
  TRY(Enter(FaultPlan::kRead, "read"));
  return inner_->Read(at, into);
}

Result<> FaultStore::Write(uint64_t at, std::span<const iovec> from) {
  Result<> entered = Enter(FaultPlan::kWrite, "write");
  if (entered.has_value()) return inner_->Write(at, from);
  std::vector<iovec> part;
  IovSlice(from, 0, IovLength(from) * (plan_.calls() % 3) / 2, part);
  if (!part.empty()) TRY(inner_->Write(at, part));
  return entered;
}

Result<> FaultStore::Zero(Range range, bool may_unmap) {
  Result<> entered = Enter(FaultPlan::kZero, "zero");
  if (entered.has_value()) return inner_->Zero(range, may_unmap);
  Range part{range.offset, range.length / 2 * (plan_.calls() % 3)};
  if (!part.empty()) TRY(inner_->Zero(part, may_unmap));
  return entered;
}

Result<> FaultStore::Sync() {
  TRY(Enter(FaultPlan::kSync, "sync"));
  return inner_->Sync();
}

Result<> FaultStore::Resize(uint64_t size) {
  TRY(Enter(FaultPlan::kResize, "resize"));
  return inner_->Resize(size);
}

Result<> FaultStore::Allocate(Range range) {
  TRY(Enter(FaultPlan::kAllocate, "allocate"));
  return inner_->Allocate(range);
}

Result<Store::Run> FaultStore::FindRun(uint64_t at) {
  TRY(Enter(FaultPlan::kFindRun, "find-run"));
  return inner_->FindRun(at);
}

}  // namespace platter
