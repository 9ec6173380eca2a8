// What tests of bitmaps share: bitmaps as they lie on disk, read without the code under test.
#pragma once

#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "formats/qcow2/qcow2_testing.h"
#include "io/bitmapper.h"
#include "io/memory_store.h"

namespace platter::qcow2 {

// A bitmap as it is on disk: whether it is to be trusted, and the bits that are set.
struct Seen {
  bool in_use = false, enabled = false;
  uint64_t granularity = 0, entries = 0;
  std::vector<uint64_t> set;
  friend bool operator==(const Seen&, const Seen&) = default;
};
std::ostream& operator<<(std::ostream& out, const Seen& seen);

// By name.
using SeenBitmaps = std::map<std::string, Seen>;
Result<SeenBitmaps> LookAtBitmaps(Store& file);

// The dirty bytes of a bitmap as the layer tells them.
Result<std::vector<Range>> DirtyOf(Layer& layer, const std::string& name);

class BitmapTest : public QemuTest {
 protected:
  // In the test's folder; fails the test if it fails.
  void Run(const std::string& command);
  SeenBitmaps Look(const std::string& name);
  std::unique_ptr<Layer> OpenLayer(const std::string& name, bool writable);
  std::unique_ptr<MemoryStore> Load(const std::string& name);
};

}  // namespace platter::qcow2
