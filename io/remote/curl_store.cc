#include "io/remote/curl_store.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "io/remote/curl_transfer.h"
#include "io/remote/downloaded_store.h"
#include "io/remote/url.h"

namespace platter {

namespace {

using internal::CurlAnswer;
using internal::CurlHandle;
using internal::CurlRequest;

constexpr std::string_view kSchemes[] = {"http", "https", "ftp", "ftps", "tftp"};

// What requests for one file have in common.
class CurlFile {
 public:
  CurlFile(std::string url, const CurlOptions& options)
      : name_(DescribeUrl(url)),
        scheme_(SchemeOf(url)),
        keeps_url_(url.find('@') != url.npos),
        first_url_(url),
        options_(options),
        url_(std::move(url)) {}

  const std::string& name() const { return name_; }
  const std::string& url() const { return first_url_; }
  bool web() const { return scheme_.starts_with("http"); }
  unsigned tries() const { return options_.tries; }

  CurlAnswer Ask(std::optional<Range> range, bool head, std::function<bool(ConstBytes)> sink) {
    CurlRequest request;
    request.scheme = scheme_;
    request.range = range;
    request.head = head;
    request.sink = std::move(sink);
    request.connect_seconds = options_.connect_seconds;
    request.stall_seconds = options_.stall_seconds;
    request.stop = &stop_;
    CurlHandle curl = Take(request.url);
    if (web() && request.url != first_url_) request.scheme = SchemeOf(request.url);
    CurlAnswer answer = internal::Perform(curl.get(), request);
    std::lock_guard lock(mutex_);
    idle_.push_back(std::move(curl));
    return answer;
  }

  // Later requests go where redirects led, unless the name holds a password, which is for the
  // first server only.
  void GoTo(const std::string& url) {
    std::lock_guard lock(mutex_);
    if (!keeps_url_) url_ = url;
  }
  // To where the name leads; false if that is where it went already.
  bool GoBack() {
    std::lock_guard lock(mutex_);
    return std::exchange(url_, first_url_) != first_url_;
  }

  void Stop() { stop_ = true; }

  // Before the next try, twice as long each time. False where there is to be none.
  bool Wait(unsigned tried) const {
    using namespace std::chrono_literals;
    if (tried >= options_.tries) return false;
    auto until = std::chrono::steady_clock::now() + 100ms * (1u << std::min(tried, 6u));
    while (!stop_ && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(20ms);
    return !stop_;
  }

  // What is wrong with an answer that has no part of the file.
  std::unexpected<Error> Failed(const CurlAnswer& answer) const {
    if (stop_) return Fail(Code::kRefused, "'{}': stopped", name_);
    const bool answered = web() && answer.status >= 400;
    if (!answered && answer.code == CURLE_OK) {
      return Fail(Code::kIo, "'{}': the server answers with status {}", name_, answer.status);
    }
    if (!answered) return Fail(Code::kIo, "'{}': {}", name_, answer.problem);
    if (answer.status == 404) return FailErrno(ENOENT, "'{}': the server answers 404", name_);
    return Fail(Code::kIo, "'{}': the server answers {}", name_, answer.status);
  }

 private:
  CurlHandle Take(std::string& url) {
    std::lock_guard lock(mutex_);
    url = url_;
    if (idle_.empty()) return CurlHandle(curl_easy_init());
    CurlHandle curl = std::move(idle_.back());
    idle_.pop_back();
    return curl;
  }

  const std::string name_, scheme_;
  const bool keeps_url_;
  const std::string first_url_;
  const CurlOptions options_;
  std::atomic<bool> stop_{false};

  Mutex mutex_;  // guards what follows; a leaf
  std::string url_;
  std::vector<CurlHandle> idle_;
};

// A file of which any part can be had.
class CurlSource final : public RemoteSource {
 public:
  CurlSource(std::unique_ptr<CurlFile> file, uint64_t size, std::string version)
      : file_(std::move(file)), size_(size), version_(std::move(version)) {}

  const std::string& name() const override { return file_->name(); }
  const std::string& url() const override { return file_->url(); }
  uint64_t size() const override { return size_; }
  const std::string& version() const override { return version_; }
  // FTP opens a connection for each request.
  uint64_t worthwhile() const override { return file_->web() ? 256 * kKiB : 4 * kMiB; }
  void Stop() override { file_->Stop(); }

  Result<> Fetch(uint64_t at, Bytes into) override {
    for (unsigned tried = 0; !into.empty();) {
      uint64_t got = 0;
      CurlAnswer answer = file_->Ask(Range{at, into.size()}, false, [&](ConstBytes bytes) {
        if (bytes.size() > into.size() - got) return false;
        std::memcpy(into.data() + got, bytes.data(), bytes.size());
        got += bytes.size();
        return true;
      });
      if (got > 0) TRY(CheckPart(answer, {at, into.size()}));
      if (got == into.size()) return {};
      at += got;
      into = into.subspan(got);
      if (got > 0) tried = 0;
      if (answer.status >= 400 && !answer.may_pass() && file_->GoBack()) continue;
      if (answer.status == 200 && file_->web()) return Changed("sends it only as a whole now");
      const bool cut = got > 0 && answer.code == CURLE_OK;
      if ((!cut && !answer.may_pass()) || !file_->Wait(tried++)) return file_->Failed(answer);
    }
    return {};
  }

 private:
  // That what came is of the file that was opened, and what was asked for.
  Result<> CheckPart(const CurlAnswer& answer, Range wanted) const {
    if (answer.version != version_) {
      return Changed(fmt::format("is at '{}' now, and was at '{}'", answer.version, version_));
    }
    if (!file_->web()) return {};
    if (answer.total && *answer.total != size_) {
      return Changed(fmt::format("has {} bytes now, and had {}", *answer.total, size_));
    }
    if (answer.part == wanted) return {};
    return Fail(Code::kIo, "'{}': the server sent another part than bytes {} to {}", name(),
                wanted.offset, wanted.end());
  }

  std::unexpected<Error> Changed(std::string_view how) const {
    return Fail(Code::kCorrupt, "'{}' changed on the server while it was read: it {}", name(), how);
  }

  const std::unique_ptr<CurlFile> file_;
  const uint64_t size_;
  const std::string version_;
};

// A file that comes only as a whole.
class CurlDownload final : public Download {
 public:
  CurlDownload(std::unique_ptr<CurlFile> file, std::optional<uint64_t> size)
      : file_(std::move(file)), size_(size) {}

  const std::string& name() const override { return file_->name(); }
  std::optional<uint64_t> size() const override { return size_; }
  void Stop() override { file_->Stop(); }

  Result<> Run(const std::function<Result<>(ConstBytes)>& sink) override {
    for (unsigned tried = 0;; ++tried) {
      uint64_t got = 0;
      Result<> kept;
      CurlAnswer answer = file_->Ask(std::nullopt, false, [&](ConstBytes bytes) {
        got += bytes.size();
        kept = sink(bytes);
        return kept.has_value();
      });
      TRY(std::move(kept));
      if (answer.code == CURLE_OK && (!file_->web() || answer.status == 200)) {
        return CheckWhole(answer, got);
      }
      // What was handed on cannot be taken back.
      if (got > 0 || !answer.may_pass() || !file_->Wait(tried)) return file_->Failed(answer);
    }
  }

 private:
  Result<> CheckWhole(const CurlAnswer& answer, uint64_t got) const {
    if (answer.length && *answer.length != got) {
      return Fail(Code::kIo, "{} bytes came instead of {}", got, *answer.length);
    }
    if (!file_->web() || answer.framed) return {};
    return Fail(Code::kRefused,
                "the server does not say how long it is, so that nobody could tell whether all of "
                "it came");
  }

  const std::unique_ptr<CurlFile> file_;
  const std::optional<uint64_t> size_;
};

using Opened = Result<std::unique_ptr<Store>>;

Opened OpenWhole(std::unique_ptr<CurlFile> file, std::optional<uint64_t> size) {
  return DownloadedStore::Open(std::make_unique<CurlDownload>(std::move(file), size));
}

Opened OpenParts(std::unique_ptr<CurlFile> file, uint64_t size, std::string version,
                 const CurlOptions& options) {
  auto source = std::make_unique<CurlSource>(std::move(file), size, std::move(version));
  return CachedStore::Open(std::move(source), options.cache);
}

// Asks for the first byte: the answer says whether parts can be had, and of how much.
Opened OpenWeb(std::unique_ptr<CurlFile> file, const CurlOptions& options) {
  CurlAnswer answer = file->Ask(Range{0, 1}, false, {});
  for (unsigned tried = 0;
       answer.may_pass() && answer.code != CURLE_COULDNT_CONNECT && file->Wait(tried); ++tried) {
    answer = file->Ask(Range{0, 1}, false, {});
  }
  if (answer.status == 206 && answer.code == CURLE_OK) {
    if (!answer.total || answer.part != Range{0, 1}) {
      return Fail(Code::kIo, "'{}': the server sends parts without saying of what", file->name());
    }
    file->GoTo(answer.url);
    return OpenParts(std::move(file), *answer.total, answer.version, options);
  }
  if (answer.status == 416 && answer.total == 0u) {
    return OpenParts(std::move(file), 0, answer.version, options);
  }
  if (answer.status == 200) return OpenWhole(std::move(file), answer.length);
  return file->Failed(answer);
}

// Asks for size and time, and then for the second byte, to see whether the server can start there.
Opened OpenFtp(std::unique_ptr<CurlFile> file, const CurlOptions& options) {
  CurlAnswer answer = file->Ask(std::nullopt, true, {});
  if (answer.code != CURLE_OK) return file->Failed(answer);
  if (!answer.length) return OpenWhole(std::move(file), std::nullopt);
  if (*answer.length > 1) {
    CurlAnswer second = file->Ask(Range{1, 1}, false, {});
    if (second.code == CURLE_FTP_COULDNT_USE_REST || second.code == CURLE_RANGE_ERROR) {
      return OpenWhole(std::move(file), answer.length);
    }
    if (second.code != CURLE_OK) return file->Failed(second);
  }
  return OpenParts(std::move(file), *answer.length, answer.version, options);
}

}  // namespace

std::span<const std::string_view> CurlOpener::schemes() const { return kSchemes; }

Result<std::unique_ptr<Store>> CurlOpener::Open(const std::string& url, bool writable) const {
  static const CURLcode ready = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (ready != CURLE_OK) return Fail(Code::kIo, "libcurl: {}", curl_easy_strerror(ready));
  const Url parts = TRY(ParseUrl(url));
  if (parts.host.empty())
    return Fail(Code::kOutOfRange, "URL '{}' names no host", DescribeUrl(url));
  if (writable) return Fail(Code::kReadOnly, "'{}' can only be read", DescribeUrl(url));
  auto file = std::make_unique<CurlFile>(url, options_);
  if (file->web()) return OpenWeb(std::move(file), options_);
  if (parts.scheme == "tftp") return OpenWhole(std::move(file), std::nullopt);
  return OpenFtp(std::move(file), options_);
}

}  // namespace platter
