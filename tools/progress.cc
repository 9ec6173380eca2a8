#include "tools/progress.h"

#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "base/size.h"
#include "tools/interrupt.h"

namespace platter {
namespace {

std::string Clock(double seconds) {
  auto whole = static_cast<uint64_t>(std::min(seconds, 359999.0));
  if (whole >= 3600)
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

double TimeLeft(uint64_t done, uint64_t total, double seconds) {
  if (done == 0 || done >= total) return 0;
  return seconds * static_cast<double>(total - done) / static_cast<double>(done);
}

double Percent(uint64_t done, uint64_t total) {
  return total == 0
             ? 100.0
             : 100.0 * static_cast<double>(std::min(done, total)) / static_cast<double>(total);
}

}  // namespace

std::string ProgressBar(uint64_t done, uint64_t total, uint64_t moved, double seconds,
                        unsigned width) {
  std::string head = fmt::format("    ({:.2f}/100%)", Percent(done, total));
  std::string tail;
  if (seconds > 0.2) {
    tail = fmt::format("  {}/s",
                       HumanSize(static_cast<uint64_t>(static_cast<double>(moved) / seconds)));
    tail += done >= total ? fmt::format("  {} in all", Clock(seconds))
                          : fmt::format("  {} left", Clock(TimeLeft(done, total, seconds)));
  }
  if (head.size() + tail.size() + 12 > width) return head;
  size_t room = std::min<size_t>(width - head.size() - tail.size() - 4, 40);
  auto filled = static_cast<size_t>(Percent(done, total) / 100.0 * static_cast<double>(room));
  return head + " [" + std::string(filled, '#') + std::string(room - filled, '.') + "]" + tail;
}

ProgressDisplay::ProgressDisplay(Console& console, const Progress& progress,
                                 const ProgressOptions& options)
    : console_(console), progress_(progress), options_(options) {
  if (!options_.quiet || options_.json_fd >= 0) {
    thread_ = std::jthread([this](std::stop_token stop) { Watch(stop); });
  }
}

ProgressDisplay::~ProgressDisplay() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
  if (options_.show) Show(/*last=*/true);
  if (options_.json_fd >= 0) WriteJson(/*last=*/true);
}

void ProgressDisplay::Watch(std::stop_token stop) {
  std::mutex mutex;
  std::condition_variable_any tick;
  std::unique_lock lock(mutex);
  while (!stop.stop_requested()) {
    tick.wait_for(lock, stop, std::chrono::milliseconds(200), [] { return false; });
    if (stop.stop_requested()) return;
    if (options_.show) Show(/*last=*/false);
    if (options_.json_fd >= 0) WriteJson(/*last=*/false);
    if (!options_.show && TakeProgressRequest()) {
      console_.Err(ProgressBar(progress_.done, progress_.total, progress_.moved, Seconds(), 80) +
                   "\n");
    }
  }
}

void ProgressDisplay::Show(bool last) {
  if (!console_.err_is_terminal()) {  // a log: one line at the end says it all
    if (last)
      console_.Err(ProgressBar(progress_.done, progress_.total, progress_.moved, Seconds(), 80) +
                   "\n");
    return;
  }
  std::string bar =
      ProgressBar(progress_.done, progress_.total, progress_.moved, Seconds(), console_.width());
  console_.Err("\r" + bar + "\x1b[K" + (last ? "\n" : ""));
}

void ProgressDisplay::WriteJson(bool last) {
  uint64_t done = progress_.done, total = progress_.total;
  double seconds = Seconds();
  nlohmann::ordered_json line = {
      {"done", done},
      {"total", total},
      {"moved", progress_.moved.load()},
      {"seconds", seconds},
      {"seconds-left", TimeLeft(done, total, seconds)},
      {"finished", last && done >= total},
  };
  std::string text = line.dump() + "\n";
  // A program that stopped listening does not stop the work.
  [[maybe_unused]] ssize_t written = write(options_.json_fd, text.data(), text.size());
}

double ProgressDisplay::Seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

}  // namespace platter
