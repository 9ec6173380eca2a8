#include "nbd/workers.h"

#include <mutex>
#include <system_error>
#include <utility>

namespace platter::nbd {

Workers::~Workers() {
  {
    std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  changed_.NotifyAll();
  threads_.clear();
}

void Workers::Submit(Job job) {
  bool alone = false;
  {
    std::scoped_lock lock(mutex_);
    if (idle_ <= jobs_.size() && threads_.size() < most_) StartOneLocked();
    alone = threads_.empty();
    if (!alone) jobs_.push_back(std::move(job));
  }
  // The system has no thread for us, not even one: then it is the caller's.
  if (alone) return job();
  changed_.NotifyOne();
}

void Workers::StartOneLocked() {
  try {
    threads_.emplace_back([this] { Run(); });
  } catch (const std::system_error&) {
    // Too many threads for the system; those that there are have to do.
  }
}

void Workers::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    changed_.Wait(lock, [&] { return !jobs_.empty() || stopping_; });
    --idle_;
    if (jobs_.empty()) return;
    {
      Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
    }
    lock.lock();
  }
}

}  // namespace platter::nbd
