// UrlOpener: from a URL to a store. One for each kind of server (io/remote, nbd/client_store.h);
// the Gate is handed those that a program has, so that cow/ knows none of them.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "io/store.h"

namespace platter {

class UrlOpener {
 public:
  virtual ~UrlOpener() = default;

  // The schemes that it opens, in lower case: "http", "https".
  virtual std::span<const std::string_view> schemes() const = 0;

  // True if a URL names a file in a folder, so that another file beside it has a URL, too.
  virtual bool has_folders() const = 0;

  // Connects. Any thread. kOutOfRange (the URL), kIo (server, network), kRefused (its identity
  // cannot be verified; a policy), kReadOnly (`writable`, and the server is not).
  virtual Result<std::unique_ptr<Store>> Open(const std::string& url, bool writable) const = 0;
};

}  // namespace platter
