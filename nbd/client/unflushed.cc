#include "nbd/client/unflushed.h"

#include <mutex>
#include <utility>

namespace platter::nbd {

bool Unflushed::Keep(uint64_t era, Entry entry) {
  std::lock_guard lock(mutex_);
  if (era != era_) return false;
  // An entry without data has its own size, too.
  bytes_ += entry.data.size() + sizeof(Entry);
  entries_.push_back(std::move(entry));
  return true;
}

uint64_t Unflushed::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

uint64_t Unflushed::mark() const {
  std::lock_guard lock(mutex_);
  return first_ + entries_.size();
}

void Unflushed::Drop(uint64_t mark) {
  std::lock_guard lock(mutex_);
  for (; first_ < mark && !entries_.empty(); ++first_) {
    bytes_ -= entries_.front().data.size() + sizeof(Entry);
    entries_.pop_front();
  }
}

Result<> Unflushed::Replay(uint64_t era, const std::function<Result<>(const Entry&)>& send) {
  std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_) TRY(send(entry));
  era_ = era;
  return {};
}

}  // namespace platter::nbd
