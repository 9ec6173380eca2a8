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

  // The export of this name; "" is the first. `writable`: for writing where the image can be
  // written; info().writable says what came of it. Any thread. kRefused: no such export, or it is
  // open the other way; what opening an image gives.
  Result<std::shared_ptr<Disk>> Open(const std::string& name, bool writable);

 private:
  struct Target {
    std::string file, snapshot;
  };
  Result<Target> Find(const std::string& name) const;
  Result<std::shared_ptr<Disk>> OpenDisk(const Target& target, bool writable) const;
  DiskOptions OptionsFor(const Target& target, bool writable) const;

  const ExportConfig config_;
  const Gate gate_;
  Mutex mutex_;  // guards open_, also while an image is being opened: never twice
  std::map<std::string, std::weak_ptr<Disk>> open_;  // by name
};

}  // namespace platter::nbd
