// The configurations of VHD that model, fault and power-cut tests run on.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/format.h"
#include "io/store.h"
#include "tests/model/subject.h"

namespace platter::vhd {

struct Configuration {
  std::string name;
  uint64_t size = 0;  // bytes
  uint64_t unit = 0;  // bytes: borders that operations aim at
  std::map<std::string, std::string> options;
  bool parent = false;
  // Blocks that have a place when the image is new, with every third sector there: as other
  // programs leave them.
  uint64_t partial_blocks = 0;
};

// What a parent says of itself.
ParentFile ParentOf(uint64_t size);

Result<> CreateImage(const Configuration& configuration, Store& store);
// The store outlives the layer.
Result<std::unique_ptr<Layer>> OpenImage(Store& store, bool writable = true);
// No corruption and no error; leaks are allowed.
Result<bool> IsSound(Store& store);

std::vector<Configuration> Configurations();
model::Subject SubjectOf(const Configuration& configuration);

}  // namespace platter::vhd
