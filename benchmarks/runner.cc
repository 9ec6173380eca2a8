#include "benchmarks/runner.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace platter::bench {
namespace {

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Sample Summary(const std::vector<Sample>& samples) {
  std::vector<double> wall, cpu;
  Sample summary;
  summary.ok = true;
  for (const Sample& sample : samples) {
    wall.push_back(sample.seconds);
    cpu.push_back(sample.cpu_seconds);
    summary.peak_mib = std::max(summary.peak_mib, sample.peak_mib);
    summary.ok = summary.ok && sample.ok;
  }
  summary.seconds = Median(wall);
  summary.cpu_seconds = Median(cpu);
  return summary;
}

}  // namespace

Sample RunOnce(const std::string& command) {
  auto start = std::chrono::steady_clock::now();
  pid_t child = fork();
  if (child == 0) {
    int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0) _exit(126);
    execl("/bin/sh", "sh", "-c", ("exec " + command).c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  rusage usage{};
  wait4(child, &status, 0, &usage);
  Sample sample;
  sample.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  sample.cpu_seconds = Seconds(usage.ru_utime) + Seconds(usage.ru_stime);
  sample.peak_mib = static_cast<double>(usage.ru_maxrss) / 1024;
  sample.ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (!sample.ok) std::fprintf(stderr, "failed (status %d): %s\n", status, command.c_str());
  return sample;
}

Comparison Compare(const std::string& ours, const std::string& peer, const std::string& before,
                   int runs) {
  auto prepare = [&] {
    if (!before.empty() && std::system(before.c_str()) != 0)
      std::fprintf(stderr, "failed: %s\n", before.c_str());
  };
  std::vector<Sample> our_samples, peer_samples;
  std::vector<double> ratios;
  for (int run = -1; run < runs; ++run) {
    prepare();
    Sample a = RunOnce(ours);
    prepare();
    Sample b = RunOnce(peer);
    if (run < 0) continue;  // warm-up
    our_samples.push_back(a);
    peer_samples.push_back(b);
    ratios.push_back(a.seconds / b.seconds);
  }
  return {Summary(our_samples), Summary(peer_samples), Median(ratios)};
}

void PrintHeader() {
  std::printf("%-34s %9s %9s %7s %8s %9s %9s  %s\n", "", "ours s", "peer s", "ratio", "goal",
              "ours MiB", "peer MiB", "");
}

void PrintLine(const std::string& name, const Comparison& result, double goal) {
  char goal_text[16] = "";
  if (goal > 0) std::snprintf(goal_text, sizeof goal_text, "<= %.2f", goal);
  const char* verdict = !result.ours.ok || !result.peer.ok ? "FAILED"
                        : goal > 0 && result.ratio > goal  ? "missed"
                                                           : "";
  std::printf("%-34s %9.3f %9.3f %7.3f %8s %9.1f %9.1f  %s\n", name.c_str(), result.ours.seconds,
              result.peer.seconds, result.ratio, goal_text, result.ours.peak_mib,
              result.peer.peak_mib, verdict);
  std::fflush(stdout);
}

unsigned long long FileSize(const std::string& path) {
  struct stat status{};
  return stat(path.c_str(), &status) == 0 ? static_cast<unsigned long long>(status.st_size) : 0;
}

}  // namespace platter::bench
