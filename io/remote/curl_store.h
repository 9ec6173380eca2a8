// Files of web, FTP and TFTP servers as stores, by libcurl: http, https, ftp, ftps, tftp.
//
// A server that hands out any part of a file is asked for what is read and a little more
// (CachedStore). Each answer has to be about the file that was opened: the same ETag (or, where
// the server has none, the same time of change) and the same size, or reading fails; a copy made
// of two states of a file would be worse than none. A server that sends a file only as a whole
// (tftp, others without ranges) is read once from front to back (DownloadedStore).
//
// Redirects: five at most, from http to http or https, from https to https only; never to another
// kind of name. Certificates are verified against the system's, or CURL_CA_BUNDLE / SSL_CERT_FILE.
// A proxy is used as the environment says (https_proxy, no_proxy).
#pragma once

#include <memory>

#include "io/remote/cached_store.h"
#include "io/remote/url_opener.h"

namespace platter {

struct CurlOptions {
  CacheOptions cache;
  unsigned tries = 5;  // of a request that failed for a reason that may pass
  unsigned connect_seconds = 20;
  unsigned stall_seconds = 30;  // without a byte
};

class CurlOpener final : public UrlOpener {
 public:
  explicit CurlOpener(CurlOptions options) : options_(std::move(options)) {}
  std::span<const std::string_view> schemes() const override;
  bool has_folders() const override { return true; }
  Result<std::unique_ptr<Store>> Open(const std::string& url, bool writable) const override;

 private:
  const CurlOptions options_;
};

}  // namespace platter
