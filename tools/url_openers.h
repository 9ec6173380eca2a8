// What names may be URLs, and how they are opened.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/remote/url_opener.h"

namespace platter {

struct RemoteOptions {
  std::string cache_folder;      // of parts of remote files; empty: none
  double reconnect_seconds = 0;  // for how long a lost NBD server is looked for
};

std::vector<std::shared_ptr<const UrlOpener>> MakeUrlOpeners(const RemoteOptions& options);

}  // namespace platter
