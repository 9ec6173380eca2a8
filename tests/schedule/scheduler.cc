#include "tests/schedule/scheduler.h"

#include <fmt/core.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/sync.h"
#include "tests/model/random.h"

namespace platter::schedule {
namespace {

// More steps than any scenario takes: two threads that wait for each other by turns.
constexpr size_t kMostSteps = 100'000;

class Scheduler {
 public:
  Scheduler(size_t threads, Chooser& chooser) : chooser_(chooser), states_(threads) {}

  void Run(const std::vector<std::function<void()>>& bodies) {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < bodies.size(); ++i) {
      threads.emplace_back([this, i, &body = bodies[i]] {
        ThreadHook hook(*this, i);
        WaitForTurn(i);
        sched::hook = &hook;
        body();
        sched::hook = nullptr;
        Finish(i);
      });
    }
    {
      std::lock_guard lock(mutex_);
      PassOnLocked(0, /*can_continue=*/false);
    }
  }

  std::vector<std::string> trace;

 private:
  struct State {
    bool finished = false;
    bool waiting = false;   // found something taken that another thread must give back
    uint64_t progress = 0;  // how far all had come when it did
  };

  struct ThreadHook final : sched::Hook {
    ThreadHook(Scheduler& scheduler, size_t number) : owner(scheduler), thread(number) {}
    void Yield(const char* where) override { owner.Yield(thread, where); }
    Scheduler& owner;
    const size_t thread;
  };

  void WaitForTurn(size_t thread) {
    std::unique_lock lock(mutex_);
    turn_changed_.wait(lock, [&] { return started_ && running_ == thread; });
  }

  void Yield(size_t thread, const char* where) {
    {
      std::lock_guard lock(mutex_);
      State& state = states_[thread];
      state.waiting = std::strcmp(where, "mutex") == 0 || std::strcmp(where, "wait") == 0;
      if (!state.waiting) {
        ++progress_;
        stuck_ = 0;
      }
      state.progress = progress_;
      trace.push_back(fmt::format("{}:{}", thread, where));
      PassOnLocked(thread, !state.waiting);
    }
    WaitForTurn(thread);
  }

  void Finish(size_t thread) {
    std::lock_guard lock(mutex_);
    states_[thread].finished = true;
    ++progress_;
    trace.push_back(fmt::format("{}:end", thread));
    PassOnLocked(thread, false);
  }

  // A thread that waits is let look again only when another one has done something since.
  void PassOnLocked(size_t current, bool can_continue) {
    std::vector<size_t> ready;
    bool all_finished = true;
    for (size_t i = 0; i < states_.size(); ++i) {
      all_finished = all_finished && states_[i].finished;
      bool useless = states_[i].waiting && states_[i].progress == progress_;
      if (!states_[i].finished && !useless) ready.push_back(i);
    }
    if (all_finished) return;
    // A thread may have given a lock back on its way from its last yield point to where it waits
    // now, unseen: all look once more, as often as there are threads, before it is a deadlock.
    if (ready.empty() && stuck_++ < states_.size()) {
      ++progress_;
      for (size_t i = 0; i < states_.size(); ++i) {
        if (!states_[i].finished) ready.push_back(i);
      }
      can_continue = false;
    }
    if (ready.empty() || trace.size() > kMostSteps) {
      std::fprintf(stderr, "deadlock:");
      for (const std::string& step : trace) std::fprintf(stderr, " %s", step.c_str());
      std::fprintf(stderr, "\n");
      std::abort();
    }
    running_ = ready.size() == 1 ? ready[0] : chooser_.Choose(ready, current, can_continue);
    started_ = true;
    turn_changed_.notify_all();
  }

  Chooser& chooser_;
  std::mutex mutex_;  // not ours: what schedules must not be scheduled
  std::condition_variable turn_changed_;
  std::vector<State> states_;
  uint64_t progress_ = 0;
  size_t stuck_ = 0;  // times that all were found waiting since one went on
  size_t running_ = 0;
  bool started_ = false;
};

class RandomChooser final : public Chooser {
 public:
  explicit RandomChooser(uint64_t seed) : random_(seed) {}
  size_t Choose(const std::vector<size_t>& ready, size_t, bool) override {
    return ready[random_.Below(ready.size())];
  }

 private:
  model::Random random_;
};

// Depth-first through the tree of choices: a run repeats the choices of the last one up to the
// deepest that has an alternative left, takes that, and goes on with first choices. The first
// choice is to go on with the current thread.
class DepthFirst final : public Chooser {
 public:
  explicit DepthFirst(int preemptions) : most_preemptions_(preemptions) {}

  size_t Choose(const std::vector<size_t>& ready, size_t current, bool can_continue) override {
    std::vector<size_t> options;
    if (can_continue) options.push_back(current);
    if (!can_continue || preemptions_ < most_preemptions_) {
      for (size_t thread : ready) {
        if (!can_continue || thread != current) options.push_back(thread);
      }
    }
    if (depth_ == path_.size()) path_.push_back({0, options.size()});
    Choice& choice = path_[depth_++];
    CHECK(choice.options == options.size());  // the code under test is deterministic
    size_t chosen = options[choice.taken];
    if (can_continue && chosen != current) ++preemptions_;
    return chosen;
  }

  // False when all have been taken.
  bool NextRun() {
    depth_ = 0;
    preemptions_ = 0;
    while (!path_.empty() && path_.back().taken + 1 == path_.back().options) path_.pop_back();
    if (path_.empty()) return false;
    ++path_.back().taken;
    return true;
  }

 private:
  struct Choice {
    size_t taken, options;
  };
  const int most_preemptions_;
  int preemptions_ = 0;
  std::vector<Choice> path_;
  size_t depth_ = 0;
};

// What is wrong after one run, with how it came to it; empty if nothing is.
std::string RunOnce(const MakeScenario& make, Chooser& chooser) {
  Scenario scenario = make();
  std::vector<std::string> trace = RunThreads(scenario.threads, chooser);
  std::string wrong = scenario.verdict();
  if (wrong.empty()) return wrong;
  wrong += "\n  trace:";
  for (const std::string& step : trace) wrong += " " + step;
  return wrong;
}

}  // namespace

std::vector<std::string> RunThreads(const std::vector<std::function<void()>>& threads,
                                    Chooser& chooser) {
  Scheduler scheduler(threads.size(), chooser);
  scheduler.Run(threads);
  return std::move(scheduler.trace);
}

Outcome ExploreAll(const MakeScenario& make, int preemptions, uint64_t most_runs) {
  DepthFirst chooser(preemptions);
  Outcome outcome;
  do {
    outcome.failure = RunOnce(make, chooser);
    ++outcome.runs;
  } while (outcome.failure.empty() && outcome.runs < most_runs && chooser.NextRun());
  return outcome;
}

Outcome ExploreRandom(const MakeScenario& make, uint64_t seed, uint64_t runs) {
  Outcome outcome;
  while (outcome.failure.empty() && outcome.runs < runs) {
    RandomChooser chooser(seed + outcome.runs);
    outcome.failure = RunOnce(make, chooser);
    ++outcome.runs;
  }
  if (!outcome.failure.empty()) {
    outcome.failure = fmt::format("seed {}: {}", seed + outcome.runs - 1, outcome.failure);
  }
  return outcome;
}

}  // namespace platter::schedule
