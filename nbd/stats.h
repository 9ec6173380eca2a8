// What a server has done so far, as JSON and in the text format of Prometheus.
//
// Source: "Exposition formats" of Prometheus' documentation, text format 0.0.4.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nbd/export.h"

namespace platter::nbd {

// Of all connections, since the start. Any thread.
struct ServerCounters {
  std::atomic<uint64_t> accepted{0}, refused{0}, open{0};
};

using OpenExports = std::vector<std::shared_ptr<Export>>;

// One object, several lines.
std::string StatsAsJson(const ServerCounters& server, const OpenExports& exports);
std::string StatsAsMetrics(const ServerCounters& server, const OpenExports& exports);

}  // namespace platter::nbd
