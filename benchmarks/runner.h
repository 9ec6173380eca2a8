// Whole-process timing of two commands in turn: ours, the peer, ours, the peer
// ...
#pragma once

#include <string>
#include <vector>

namespace platter::bench {

struct Sample {
  double seconds = 0;      // wall
  double cpu_seconds = 0;  // user and system, of the process and its children
  double peak_mib = 0;     // largest resident set
  bool ok = false;         // exit code 0
};

// Runs `command` (through /bin/sh) with its output thrown away.
Sample RunOnce(const std::string& command);

struct Comparison {
  Sample ours, peer;  // medians of wall time, with cpu and the largest memory
  double ratio = 0;   // median of the pairwise ratios ours / peer
};

// `before` runs untimed before each command (removing old outputs). One warm-up
// pair, then `runs`.
Comparison Compare(const std::string& ours, const std::string& peer, const std::string& before,
                   int runs);

// A table line: name, both times, ratio, goal ("<= 0.50" or none with 0),
// memory.
void PrintHeader();
void PrintLine(const std::string& name, const Comparison& result, double goal);

// Size of a file in bytes, 0 if it is not there.
unsigned long long FileSize(const std::string& path);

}  // namespace platter::bench
