// A cooperative scheduler: a handful of threads that run one at a time, and a choice at every yield
// point of which goes on.
//
// The threads are real ones, but each waits until it is let run, and runs to its next yield point:
// where the code under test calls sched::Yield (base/sync.h), where it finds a Mutex taken, where
// it waits for a CondVar. So an interleaving is a list of choices: it can be drawn from a seed, all
// of them up to a number of preemptions can be gone through, and each can be had again.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace platter::schedule {

// Decides at one yield point. Made anew, or told to go on, for each run.
class Chooser {
 public:
  virtual ~Chooser() = default;
  // One of `ready` (thread numbers, ascending, not empty). `current` is the thread that yielded;
  // `can_continue`: it is among them, so that choosing another one is a preemption.
  virtual size_t Choose(const std::vector<size_t>& ready, size_t current, bool can_continue) = 0;
};

// Runs `threads` to their ends under `chooser`. Returns the trace: which thread ran to which yield
// point. A deadlock prints the trace and aborts: its threads cannot be ended.
std::vector<std::string> RunThreads(const std::vector<std::function<void()>>& threads,
                                    Chooser& chooser);

// One try of a scenario: threads over fresh state, and the judgement afterwards.
struct Scenario {
  std::vector<std::function<void()>> threads;
  std::function<std::string()> verdict;  // empty: as it should be; else what is wrong
};
using MakeScenario = std::function<Scenario()>;

struct Outcome {
  uint64_t runs = 0;
  std::string failure;  // of the first wrong run, with its trace; empty: none
};

// All interleavings with at most `preemptions` switches away from a thread that could have gone on,
// or the first `most_runs` of them.
Outcome ExploreAll(const MakeScenario& make, int preemptions, uint64_t most_runs = 200'000);

// `runs` interleavings drawn from `seed`; any number of preemptions.
Outcome ExploreRandom(const MakeScenario& make, uint64_t seed, uint64_t runs);

}  // namespace platter::schedule
