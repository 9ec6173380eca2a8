#include "tools/url_openers.h"

#include "io/remote/curl_store.h"
#include "io/remote/sftp_store.h"
#include "nbd/client/client_store.h"

namespace platter {

std::vector<std::shared_ptr<const UrlOpener>> MakeUrlOpeners(const RemoteOptions& options) {
  CacheOptions cache;
  cache.folder = options.cache_folder;
  return {std::make_shared<CurlOpener>(CurlOptions{.cache = cache}),
          std::make_shared<SftpOpener>(SftpOptions{.cache = cache}),
          std::make_shared<nbd::ClientOpener>(
              nbd::ClientOptions{.reconnect_seconds = options.reconnect_seconds})};
}

}  // namespace platter
