// Workers: threads for what has to wait. They start when there is work that no idle one can take.
#pragma once

#include <deque>
#include <functional>
#include <semaphore>
#include <thread>
#include <vector>

#include "base/sync.h"

namespace platter::nbd {

class Workers {
 public:
  using Job = std::move_only_function<void()>;

  explicit Workers(unsigned most) : most_(most) {}
  // Does what was submitted first.
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  // Any thread. Jobs start in the order in which they were submitted.
  void Submit(Job job);

  // True if a job would have to wait for another's end. Any thread.
  bool busy() const;

 private:
  void Run();
  void StartOneLocked();

  const unsigned most_;
  // One for each job that nobody has taken; of no job: time to end. Wakes one thread, not all.
  std::counting_semaphore<> ready_{0};
  mutable Mutex mutex_;  // guards everything below; a leaf
  std::deque<Job> jobs_;
  std::vector<std::jthread> threads_;
  size_t running_ = 0;  // jobs
};

}  // namespace platter::nbd
