// Showing how long work gets on: a bar with rate and time left on a terminal
// (-p), a line where SIGUSR1 asks for one, JSON lines for programs
// (--json-progress FD).
#pragma once

#include <chrono>
#include <string>
#include <thread>

#include "io/engine/engine.h"
#include "tools/console.h"

namespace platter {

struct ProgressOptions {
  bool show = false;   // -p
  bool quiet = false;  // not even for SIGUSR1
  int json_fd = -1;
};

// Watches a Progress from a thread of its own until it is destroyed; a bar that
// reached the end says so with 100.00.
class ProgressDisplay {
 public:
  ProgressDisplay(Console& console, const Progress& progress, const ProgressOptions& options);
  ~ProgressDisplay();
  ProgressDisplay(const ProgressDisplay&) = delete;
  ProgressDisplay& operator=(const ProgressDisplay&) = delete;

 private:
  void Watch(std::stop_token stop);
  void Show(bool last);
  void WriteJson(bool last);
  double Seconds() const;

  Console& console_;
  const Progress& progress_;
  const ProgressOptions options_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::jthread thread_;
};

// "(42.00/100%) ######----  1.21 GiB/s  0:03 left", at most `width` columns.
// For tests.
std::string ProgressBar(uint64_t done, uint64_t total, uint64_t moved, double seconds,
                        unsigned width);

}  // namespace platter
