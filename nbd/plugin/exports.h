// What the nbdkit plugin exports: images, each under the name of its file, and each snapshot inside
// one as NAME@SNAPSHOT. An image is open while a connection uses it, once for all of them: so a
// flush on one connection covers the others.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/sync.h"
#include "cow/disk.h"

namespace platter::nbd {

// As the user configured it.
struct ExportConfig {
  std::vector<std::string> files;  // paths or URLs
  std::string format, snapshot;    // of each; empty: found out; none
  std::optional<Secret> secret;
  GatePolicy policy;
};

struct NamedExport {
  std::string name, description;
};

class Exports {
 public:
  explicit Exports(ExportConfig config) : config_(std::move(config)), gate_(config_.policy) {}

  // That there are files, and that each has a name of its own and can be read. Warnings are
  // appended. kOutOfRange, and what opening gives.
  Result<> Check(std::vector<std::string>* warnings) const;

  // All of them, the default one first.
  Result<std::vector<NamedExport>> List() const;

  // One connection's use of an image.
  struct Use {
    std::string key;  // of the image among those that are open
    Disk* disk = nullptr;
  };

  // The export of this name; "" is the first. `writable`: for writing where the image can be
  // written; info().writable says what came of it, or of an earlier use that is not over. Any
  // thread. kRefused: no such export; what opening an image gives.
  Result<Use> Open(const std::string& name, bool writable);

  // The use is over. What was written is flushed; after the last use the image is closed, before
  // anybody opens it again. Any thread.
  Result<> Close(const Use& use);

 private:
  struct Target {
    std::string file, snapshot;
  };
  Result<Target> Find(const std::string& name) const;
  struct Image {
    std::unique_ptr<Disk> disk;
    size_t users = 0;
  };
  Result<std::unique_ptr<Disk>> OpenDisk(const Target& target, bool writable) const;
  DiskOptions OptionsFor(const Target& target, bool writable) const;

  const ExportConfig config_;
  const Gate gate_;
  Mutex mutex_;  // guards open_, also while an image is opened or closed: it is open once
  std::map<std::string, Image> open_;
};

}  // namespace platter::nbd
