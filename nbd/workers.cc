#include "nbd/workers.h"

#include <mutex>
#include <system_error>
#include <utility>

namespace platter::nbd {

Workers::~Workers() {
  ready_.release(static_cast<std::ptrdiff_t>(threads_.size()));
  threads_.clear();
}

void Workers::Submit(Job job) {
  bool alone = false;
  {
    std::scoped_lock lock(mutex_);
    if (running_ + jobs_.size() >= threads_.size() && threads_.size() < most_) StartOneLocked();
    alone = threads_.empty();
    if (!alone) jobs_.push_back(std::move(job));
  }
  // The system has no thread for us, not even one: then it is the caller's.
  if (alone) return job();
  ready_.release();
}

bool Workers::busy() const {
  std::scoped_lock lock(mutex_);
  return running_ + jobs_.size() >= most_;
}

void Workers::StartOneLocked() {
  try {
    threads_.emplace_back([this] { Run(); });
  } catch (const std::system_error&) {
    // Too many threads for the system; those that there are have to do.
  }
}

void Workers::Run() {
  while (true) {
    ready_.acquire();
    Job job;
    {
      std::scoped_lock lock(mutex_);
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      ++running_;
    }
    job();
    std::scoped_lock lock(mutex_);
    --running_;
  }
}

}  // namespace platter::nbd
