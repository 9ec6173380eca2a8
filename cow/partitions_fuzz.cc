// An arbitrary disk: whatever its tables say, partitions lie on it.
#include <cstdlib>

#include "base/math.h"
#include "cow/disk.h"
#include "cow/partitions.h"
#include "io/memory_store.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  auto store = std::make_unique<MemoryStore>(std::as_bytes(std::span(data, size)));
  std::vector<std::unique_ptr<Layer>> layers;
  auto layer = (*FindFormat("raw"))->open(std::move(store), {});
  if (!layer) return 0;
  layers.push_back(std::move(*layer));
  auto disk = Disk::FromLayers(std::move(layers));
  auto partitions = ReadPartitions(*disk);
  if (!partitions) return 0;
  for (const Partition& each : *partitions) {
    if (each.range.empty() || !FitsIn(each.range.offset, each.range.length, size)) std::abort();
  }
  return 0;
}
