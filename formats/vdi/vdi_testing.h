// What the tests of this folder share: images written byte by byte from the specification, and
// subjects for the model drivers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "formats/format.h"
#include "io/memory_store.h"
#include "tests/model/subject.h"

namespace platter::vdi {

// An image by hand: each field at its offset from the start of the file, nothing checked.
struct HandMade {
  uint16_t major = 1, minor = 1;
  uint32_t header_size = 400, type = 1;
  uint64_t size = 0;  // of the disk
  uint32_t block_size = 4096, block_extra = 0;
  std::vector<uint32_t> map;
  uint32_t allocated = 0;
  uint32_t map_offset = 512, data_offset = 1024;
  uint32_t sector_size = 512;
  uint8_t id = 1, modification = 2, parent = 0, parent_modification = 0;  // each byte of the UUID
  std::vector<std::byte> data;  // the host blocks, extra data included

  std::vector<std::byte> Bytes() const;
};

// `length` bytes that tell where they are: no two blocks of one image look alike.
std::vector<std::byte> Pattern(size_t length, uint64_t seed);

Result<std::unique_ptr<Layer>> Open(Store& store, bool writable = true);
Result<std::vector<std::byte>> ReadAll(Layer& layer);
// No corruption and no error; leaks are allowed.
Result<bool> IsSound(Store& store);

// One configuration for model, fault and power-cut tests.
struct Configuration {
  std::string name;
  uint64_t size = 0;   // bytes
  uint32_t block = 0;  // bytes
  std::map<std::string, std::string> options;
  bool parent = false;
  HandMade image = {};  // used instead where its size is set
};
std::vector<Configuration> Configurations();
model::Subject SubjectOf(const Configuration& configuration);

}  // namespace platter::vdi
