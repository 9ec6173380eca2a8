// One request by libcurl. Private to io/remote.
#pragma once

#include <curl/curl.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"

namespace platter::internal {

struct CurlDeleter {
  void operator()(CURL* curl) const { curl_easy_cleanup(curl); }
};
// Keeps its connection for the next request. One thread at a time.
using CurlHandle = std::unique_ptr<CURL, CurlDeleter>;

struct CurlRequest {
  std::string url;
  std::string scheme;
  std::optional<Range> range;  // none: all of it
  bool head = false;           // what is known of the file, not its bytes
  // Takes what comes; false ends the transfer. Called once the status is known to be one with a
  // body of the file's.
  std::function<bool(ConstBytes)> sink;
  unsigned connect_seconds = 20, stall_seconds = 30;
  const std::atomic<bool>* stop = nullptr;
};

// What the server said.
struct CurlAnswer {
  CURLcode code = CURLE_OK;
  std::string problem;             // libcurl's text where code says that there is one
  long status = 0;                 // of HTTP and FTP
  std::string url;                 // after redirects
  std::string version;             // ETag or time of change; "" where the server has none
  std::optional<uint64_t> length;  // of the body
  bool framed = false;             // it is clear where the body ends, without the connection's end
  // Of HTTP's Content-Range: which part came, and of how many bytes.
  std::optional<Range> part;
  std::optional<uint64_t> total;

  // Trying again later may help.
  bool may_pass() const;
};

CurlAnswer Perform(CURL* curl, const CurlRequest& request);

// "bytes 0-99/1000" and "bytes */1000", as RFC 9110, section 14.4, has it.
void ParseContentRange(std::string_view text, CurlAnswer& answer);

}  // namespace platter::internal
