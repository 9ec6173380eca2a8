// What every fuzz target of whole images does with one: opens and reads it, opens it for writing
// and writes, discards, zeroes and resizes, checks and repairs. Nothing is demanded of a damaged
// image but that nothing breaks; what the layer says must keep to its contract.
#pragma once

#include "formats/format.h"
#include "io/memory_store.h"

namespace platter {

// Ends the program if `condition` is false.
void Require(bool condition);

struct OpenFuzz {
  OpenOptions options;       // `writable` and `info_only` are set here
  bool resize = true;        // also disks of less than 1 GiB
  bool repair = true;        // also check with repairs
  bool repairs_all = false;  // what a repair leaves is what it said that it leaves
};

// `input`: the fuzzer's bytes, of which some are written and which choose the places.
void UseImage(const Format& format, const MemoryStore& image, ConstBytes input,
              const OpenFuzz& what);

}  // namespace platter
