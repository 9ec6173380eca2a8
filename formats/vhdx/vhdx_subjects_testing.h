// What the tests of this folder share: images of all kinds, as subjects of the model's drivers.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/format.h"
#include "tests/model/subject.h"

namespace platter::vhdx {

struct Configuration {
  std::string name;
  uint64_t size, unit;
  std::map<std::string, std::string> options;
  bool parent = false;
};

// A parent of `size` bytes that was found.
ParentFile ParentOf(uint64_t size, uint32_t sector);

Result<> CreateImage(const Configuration& configuration, Store& store);
Result<std::unique_ptr<Layer>> OpenImage(Store& store, bool writable = true);
// No corruption; leaks, and a log to be replayed, are allowed.
Result<bool> IsSound(Store& store);

std::vector<Configuration> Configurations();
model::Subject SubjectOf(const Configuration& configuration);

}  // namespace platter::vhdx
