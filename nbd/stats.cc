#include "nbd/stats.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <array>
#include <string_view>

namespace platter::nbd {
namespace {

// By Command.
constexpr std::array<std::string_view, Counters::kCommands> kNames = {
    "read",  "write",        "disconnect",   "flush", "trim",
    "cache", "write_zeroes", "block_status", "resize"};

// A label's value: backslash, quote and newline are escaped.
std::string Escape(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

void Head(std::string& out, std::string_view name, std::string_view type, std::string_view help) {
  out += fmt::format("# HELP {0} {2}\n# TYPE {0} {1}\n", name, type, help);
}

// A counter with one value an export.
void PerExport(std::string& out, std::string_view name, std::string_view help,
               const OpenExports& exports, std::atomic<uint64_t> Counters::* counter) {
  Head(out, name, "counter", help);
  for (const auto& one : exports) {
    out += fmt::format("{}{{export=\"{}\"}} {}\n", name, Escape(one->name),
                       (one->counters.*counter).load());
  }
}

}  // namespace

std::string StatsAsJson(const ServerCounters& server, const OpenExports& exports) {
  nlohmann::ordered_json json = {{"connections",
                                  {{"accepted", server.accepted.load()},
                                   {"refused", server.refused.load()},
                                   {"open", server.open.load()}}}};
  auto& list = json["exports"] = nlohmann::ordered_json::array();
  for (const auto& one : exports) {
    const Counters& counters = one->counters;
    nlohmann::ordered_json requests;
    for (size_t i = 0; i < kNames.size(); ++i) {
      if (i != kCmdDisconnect) requests[std::string(kNames[i])] = counters.requests[i].load();
    }
    list.push_back({{"name", one->name},
                    {"size", one->size()},
                    {"writable", one->writable},
                    {"requests", requests},
                    {"bytes-read", counters.bytes_read.load()},
                    {"bytes-written", counters.bytes_written.load()},
                    {"errors", counters.errors.load()},
                    {"waited", counters.waited.load()}});
  }
  // A name need not be UTF-8.
  return json.dump(4, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string StatsAsMetrics(const ServerCounters& server, const OpenExports& exports) {
  std::string out;
  auto whole = [&](std::string_view name, std::string_view type, std::string_view help,
                   uint64_t value) {
    Head(out, name, type, help);
    out += fmt::format("{} {}\n", name, value);
  };
  whole("platter_nbd_connections_accepted_total", "counter", "Clients let in.",
        server.accepted.load());
  whole("platter_nbd_connections_refused_total", "counter", "Clients over the limit.",
        server.refused.load());
  whole("platter_nbd_connections", "gauge", "Clients connected now.", server.open.load());
  Head(out, "platter_nbd_requests_total", "counter", "Requests answered.");
  for (const auto& one : exports) {
    for (size_t i = 0; i < kNames.size(); ++i) {
      if (i == kCmdDisconnect) continue;
      out += fmt::format("platter_nbd_requests_total{{export=\"{}\",command=\"{}\"}} {}\n",
                         Escape(one->name), kNames[i], one->counters.requests[i].load());
    }
  }
  PerExport(out, "platter_nbd_read_bytes_total", "Bytes asked for by reads.", exports,
            &Counters::bytes_read);
  PerExport(out, "platter_nbd_written_bytes_total", "Bytes of writes.", exports,
            &Counters::bytes_written);
  PerExport(out, "platter_nbd_errors_total", "Requests answered with an error.", exports,
            &Counters::errors);
  PerExport(out, "platter_nbd_waited_total", "Requests that a worker had to wait for.", exports,
            &Counters::waited);
  return out;
}

}  // namespace platter::nbd
