// Metrics: answers HTTP on sockets of its own, one client after the other: GET /metrics in the text
// format of Prometheus, GET /stats as JSON.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "io/fd.h"
#include "nbd/listen.h"

namespace platter::nbd {

class Metrics {
 public:
  using Text = std::function<std::string()>;

  // Answers until it is destroyed, on a thread of its own, which calls the functions.
  Metrics(std::vector<Listener> listeners, Text metrics, Text stats);
  ~Metrics();

 private:
  void Run();
  void Answer(int client);

  const std::vector<Listener> listeners_;
  const Text metrics_, stats_;
  const Fd stop_;  // eventfd
  std::jthread thread_;
};

}  // namespace platter::nbd
