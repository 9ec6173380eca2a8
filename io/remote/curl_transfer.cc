#include "io/remote/curl_transfer.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "io/remote/url.h"

namespace platter::internal {

namespace {

constexpr long kMostRedirects = 5;
// Bytes: fits into an Ethernet frame. TFTP's own 512 make a packet of each and a limit of 32 MiB.
constexpr long kTftpBlock = 1428;

struct Transfer {
  const CurlRequest& request;
  CURL* curl;
  bool refused = false;  // by the sink
};

// A page that says "not found" is no part of the file.
bool HasFileBody(const Transfer& transfer) {
  if (!transfer.request.scheme.starts_with("http")) return true;
  long status = 0;
  curl_easy_getinfo(transfer.curl, CURLINFO_RESPONSE_CODE, &status);
  return status == (transfer.request.range ? 206 : 200);
}

size_t OnBody(char* bytes, size_t, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  if (!HasFileBody(transfer)) {
    // An error's page is short and keeps the connection; a file that nobody asked for is not read.
    long status = 0;
    curl_easy_getinfo(transfer.curl, CURLINFO_RESPONSE_CODE, &status);
    return status == 200 ? 0 : count;
  }
  if (!transfer.request.sink || transfer.request.sink(AsBytes(std::string_view(bytes, count)))) {
    return count;
  }
  transfer.refused = true;
  return 0;
}

int OnProgress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  const auto& transfer = *static_cast<Transfer*>(user);
  return transfer.request.stop && *transfer.request.stop ? 1 : 0;
}

std::string Header(CURL* curl, const char* name) {
  curl_header* header = nullptr;
  // -1: of the last answer, behind all redirects.
  if (curl_easy_header(curl, name, 0, CURLH_HEADER, -1, &header) != CURLHE_OK) return {};
  return Printable(header->value, 1024);
}

void SetProtocols(CURL* curl, const std::string& scheme) {
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, scheme.c_str());
  const bool web = scheme == "http" || scheme == "https";
  curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, scheme == "http" ? "http,https" : "https");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, web ? 1L : 0L);
  curl_easy_setopt(curl, CURLOPT_MAXREDIRS, kMostRedirects);
  if (scheme == "ftps") curl_easy_setopt(curl, CURLOPT_USE_SSL, CURLUSESSL_ALL);
  for (const char* name : {"CURL_CA_BUNDLE", "SSL_CERT_FILE"}) {
    const char* file = std::getenv(name);
    if (!file || !*file) continue;
    curl_easy_setopt(curl, CURLOPT_CAINFO, file);
    break;
  }
}

void SetUp(CURL* curl, const CurlRequest& request, Transfer& transfer, char* problem) {
  curl_easy_reset(curl);  // connections stay
  curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
  SetProtocols(curl, request.scheme);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, problem);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "platter");
  curl_easy_setopt(curl, CURLOPT_FILETIME, 1L);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, static_cast<long>(request.connect_seconds));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, static_cast<long>(request.stall_seconds));
  curl_easy_setopt(curl, CURLOPT_TFTP_BLKSIZE, kTftpBlock);
  curl_easy_setopt(curl, CURLOPT_NOBODY, request.head ? 1L : 0L);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, OnBody);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, OnProgress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &transfer);
  if (request.range) {
    std::string range = fmt::format("{}-{}", request.range->offset, request.range->end() - 1);
    curl_easy_setopt(curl, CURLOPT_RANGE, range.c_str());
  }
}

// The time of change has whole seconds, so an ETag says more.
std::string VersionOf(CURL* curl) {
  if (std::string tag = Header(curl, "ETag"); !tag.empty()) return "etag " + tag;
  curl_off_t time = -1;
  curl_easy_getinfo(curl, CURLINFO_FILETIME_T, &time);
  return time < 0 ? std::string() : fmt::format("time {}", time);
}

bool TakeNumber(std::string_view& text, uint64_t& number) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

bool TakeMark(std::string_view& text, std::string_view mark) {
  if (!text.starts_with(mark)) return false;
  text.remove_prefix(mark.size());
  return true;
}

}  // namespace

void ParseContentRange(std::string_view text, CurlAnswer& answer) {
  uint64_t first = 0, last = 0, total = 0;
  if (!TakeMark(text, "bytes ")) return;
  std::optional<Range> part;
  if (!TakeMark(text, "*")) {
    if (!TakeNumber(text, first) || !TakeMark(text, "-") || !TakeNumber(text, last)) return;
    if (last < first || last >= uint64_t{1} << 63) return;
    part = Range::FromTo(first, last + 1);
  }
  if (!TakeMark(text, "/")) return;
  if (TakeNumber(text, total)) answer.total = total;
  answer.part = part;
}

bool CurlAnswer::may_pass() const {
  switch (code) {
    case CURLE_OK: return status == 408 || status == 429 || (status >= 500 && status != 501);
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_FTP_ACCEPT_TIMEOUT:
    case CURLE_FTP_CANT_GET_HOST:
    case CURLE_HTTP2_STREAM: return true;
    default: return false;
  }
}

CurlAnswer Perform(CURL* curl, const CurlRequest& request) {
  char problem[CURL_ERROR_SIZE] = "";
  Transfer transfer{request, curl};
  SetUp(curl, request, transfer, problem);
  CurlAnswer answer;
  answer.code = curl_easy_perform(curl);
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer.status);
  if (answer.code != CURLE_OK) {
    answer.problem = Printable(*problem ? problem : curl_easy_strerror(answer.code));
  }
  // Set by us: what the answer would have been does not matter.
  if (transfer.refused && answer.code == CURLE_WRITE_ERROR) answer.problem = "ended by the reader";
  char* url = nullptr;
  curl_easy_getinfo(curl, CURLINFO_EFFECTIVE_URL, &url);
  answer.url = url ? url : request.url;
  curl_off_t length = -1;
  curl_easy_getinfo(curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
  if (length >= 0) answer.length = static_cast<uint64_t>(length);
  long version = 0;
  curl_easy_getinfo(curl, CURLINFO_HTTP_VERSION, &version);
  answer.framed = answer.length || version >= CURL_HTTP_VERSION_2_0 ||
                  !Header(curl, "Transfer-Encoding").empty();
  answer.version = VersionOf(curl);
  ParseContentRange(Header(curl, "Content-Range"), answer);
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, nullptr);
  return answer;
}

}  // namespace platter::internal
