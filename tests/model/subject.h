// What the model, fault and power-cut drivers test: any Layer, through functions that make an
// image in a store, open it and check it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/layer.h"
#include "io/store.h"

namespace platter::model {

struct Subject {
  std::string name;
  uint64_t size = 0;  // bytes the guest sees
  uint64_t unit = 0;  // bytes: borders that operations aim at

  // Writes an empty image into an empty store.
  std::function<Result<>(Store&)> create;
  // The store outlives the layer (see io/wrapper_store.h for formats, which own theirs).
  std::function<Result<std::unique_ptr<Layer>>(Store&)> open;
  // True if the image has no corruption; leaks are allowed. Null: nothing to check.
  std::function<Result<bool>(Store&)> check;

  // What the empty image reads as, `size` bytes (a chain shows its parent's); empty: zeros.
  std::vector<std::byte> initial;
};

// From the environment: PLATTER_MODEL_SEED and PLATTER_MODEL_OPERATIONS replace the given values.
struct Plan {
  uint64_t seed = 1;
  int operations = 400;
  int threads = 1;

  static Plan FromEnvironment(Plan otherwise);
};

}  // namespace platter::model
