// The configurations of qcow2 that model, fault and power-cut tests run on.
#pragma once

#include <memory>
#include <vector>

#include "io/memory_store.h"
#include "tests/model/subject.h"

namespace platter::qcow2 {

// One configuration. Its data file, if it has one, is made anew by each Create.
struct Configuration {
  std::string name;
  uint64_t size = 0;     // bytes
  uint64_t cluster = 0;  // bytes
  std::map<std::string, std::string> options;
  bool parent = false;  // it names one, so that what is not there is kParent
  bool encrypted = false;
  // Made by another program instead: the file, what it reads as, and what its snapshot "s" does.
  std::vector<std::byte> image = {}, initial = {}, snapshot = {};

  bool has_data_file() const { return options.contains("data_file"); }
};

// An empty image in `store`, its data in `data` if it has a data file.
Result<> CreateImage(const Configuration& configuration, Store& store, Store* data);
// Both stores outlive the layer.
Result<std::unique_ptr<Layer>> OpenImage(const Configuration& configuration, Store& store,
                                         Store* data, bool writable = true,
                                         const std::string& snapshot = "");
// No corruption and no error; leaks are allowed.
Result<bool> IsSound(Store& store);

std::vector<Configuration> Configurations();

// Images with an internal snapshot that shares clusters and L2 tables with the disk, by qemu-img.
std::vector<Configuration> SnapshotConfigurations();

model::Subject SubjectOf(const Configuration& configuration);

}  // namespace platter::qcow2
