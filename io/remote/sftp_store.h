// Files of SSH servers as stores, by libssh's SFTP: sftp://user@host:port/path and ssh://...
// (the same). "/~/x" is x in the user's home folder.
//
// The server has to be one that ~/.ssh/known_hosts (or the system's) knows; one that is not, or
// that shows another key, is refused. The user's ssh configuration, agent and keys are used, and a
// password only where the URL holds one. "?known-hosts=FILE" and "?identity=FILE" name other files.
//
// Source: the SFTP protocol, draft-ietf-secsh-filexfer-02, which is what OpenSSH speaks.
#pragma once

#include <memory>

#include "io/remote/cached_store.h"
#include "io/remote/url_opener.h"

namespace platter {

struct SftpOptions {
  CacheOptions cache;
  unsigned tries = 4;     // of a read whose connection was lost
  unsigned seconds = 30;  // without an answer
};

class SftpOpener final : public UrlOpener {
 public:
  explicit SftpOpener(SftpOptions options) : options_(std::move(options)) {}
  std::span<const std::string_view> schemes() const override;
  bool has_folders() const override { return true; }
  Result<std::unique_ptr<Store>> Open(const std::string& url, bool writable) const override;

 private:
  const SftpOptions options_;
};

}  // namespace platter
