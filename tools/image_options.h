// The options by which every command opens images, declared once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cow/disk.h"
#include "cow/gate.h"
#include "tools/console.h"
#include "tools/url_openers.h"

namespace CLI {
class App;
}

namespace platter {

// "file:PATH" or "env:NAME": where a passphrase is taken from. A file's last
// newline is not part of it. Never on the command line itself, where any user
// of the machine could read it.
Result<Secret> ReadSecret(const std::string& where);

// "a=1,b=x,,y" as qemu-img's -o: a doubled comma is a comma. kOutOfRange for a
// name without "=", except that a bare name means name=on.
Result<std::map<std::string, std::string>> ParseOptionList(const std::vector<std::string>& lists);

// qemu-img's cache modes: "none" and "directsync" mean O_DIRECT; the rest is
// buffered.
Result<bool> WantsDirect(const std::string& cache_mode);

class ImageOptions {
 public:
  // Declares -f, -U, --trust, --search, --allow-external, --no-backing, --secret,
  // --cache, --source-option, --remote-cache, --reconnect.
  void Declare(CLI::App& app);
  // Declares --parent and --parent-format: of the image that Open opens.
  void DeclareParent(CLI::App& app);

  // Opens an image the user named with these options.
  Result<std::unique_ptr<Disk>> Open(const std::string& path, bool writable,
                                     Console& console) const;

  Result<DiskOptions> ToDiskOptions(bool writable) const;
  Gate MakeGate() const;

  std::string format;
  bool no_backing = false;
  bool info_only = false;
  std::string parent, parent_format;  // instead of the recorded one
  std::string snapshot;
  bool quiet = false;  // no warnings

 private:
  bool force_share_ = false, allow_external_ = false, unwrap_ = false;
  std::vector<std::string> trusted_, search_, option_lists_;
  std::string secret_from_, cache_ = "writeback", unpack_limit_;
  RemoteOptions remote_;
  mutable std::shared_ptr<const Secret> secret_;  // read once, at the first open
};

}  // namespace platter
