// A whole image of arbitrary bytes: opened and read, opened for writing and written, discarded,
// checked and repaired. Every file that it names has the same bytes. Nothing is demanded of a
// damaged image but that nothing breaks; what the layer says must keep to its contract.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "formats/vmdk/vmdk.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"

namespace platter::vmdk {
namespace {

constexpr uint64_t kFirst = 256 * kKiB;  // of the disk: what is looked at, and as much at its end
constexpr size_t kMost = 64;             // rounds of Map

void Require(bool condition) {
  if (!condition) std::abort();
}

class SameBytes : public Opener {
 public:
  explicit SameBytes(ConstBytes bytes) : bytes_(bytes) {}
  Result<std::unique_ptr<Store>> OpenReference(const Reference&, bool) override {
    return std::make_unique<MemoryStore>(bytes_);
  }

 private:
  ConstBytes bytes_;
};

void MapAndRead(Layer& layer, Range range) {
  std::vector<Extent> extents(7);
  uint64_t at = range.offset;
  for (size_t round = 0; round < kMost && at < range.end(); ++round) {
    Pin pin = layer.Hold();
    auto count = layer.Map(Range{at, range.end() - at}, extents);
    if (!count.has_value()) break;
    Require(*count > 0 && *count <= extents.size());
    for (size_t i = 0; i < *count; ++i) {
      const Extent& extent = extents[i];
      Require(extent.guest.offset == at && !extent.guest.empty() &&
              extent.guest.end() <= range.end());
      if (extent.kind == Kind::kData) Require(extent.store != nullptr);
      if (extent.kind == Kind::kData && !extent.packed())
        Require(extent.host.length == extent.guest.length);
      at = extent.guest.end();
    }
  }
  std::vector<std::byte> bytes(16 * kKiB);
  for (at = range.offset; at < range.end(); at += bytes.size()) {
    (void)Read(layer, at, Bytes(bytes).first(std::min<uint64_t>(bytes.size(), range.end() - at)))
        .has_value();
  }
}

void ReadEnds(Layer& layer) {
  uint64_t size = layer.info().size;
  if (size == 0) return;
  MapAndRead(layer, Range{0, std::min(size, kFirst)});
  if (size > kFirst) MapAndRead(layer, Range{size - kFirst, kFirst});
}

void WriteSome(Layer& layer, ConstBytes input) {
  uint64_t size = layer.info().size;
  ConstBytes piece = input.first(std::min<size_t>(input.size(), 1000));
  uint64_t seed = input.size();
  for (int i = 0; i < 4 && size > piece.size(); ++i) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    uint64_t room = size - piece.size();
    uint64_t at = (seed >> 20) % std::min(room + 1, i % 2 == 0 ? kFirst : room + 1);
    (void)Write(layer, at, piece).has_value();
  }
  if (size > 0) {
    (void)layer.Discard(Range{0, std::min<uint64_t>(size, 128 * kKiB)}, Kind::kZero).has_value();
  }
  (void)layer.Flush().has_value();
}

}  // namespace
}  // namespace platter::vmdk

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::vmdk;
  ConstBytes input = std::as_bytes(std::span(data, size));
  SameBytes files(input);
  OpenOptions options;
  options.opener = &files;
  auto layer = kVmdkFormat.open(std::make_unique<MemoryStore>(input), options);
  if (layer.has_value()) ReadEnds(**layer);
  options.writable = true;
  layer = kVmdkFormat.open(std::make_unique<MemoryStore>(input), options);
  if (layer.has_value()) {
    WriteSome(**layer, input);
    ReadEnds(**layer);
  }
  MemoryStore image(input);
  (void)kVmdkFormat.check(image, options, CheckOptions{CheckOptions::kAll}).has_value();
  return 0;
}
