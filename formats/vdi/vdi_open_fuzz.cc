// A whole image of arbitrary bytes: opened and read, opened for writing and written, discarded,
// resized, checked and repaired. Nothing is demanded of a damaged image but that nothing breaks and
// that a repair leaves nothing that it said it had mended.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "formats/vdi/vdi.h"
#include "formats/vdi/vdi_parse.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"

namespace platter::vdi {
namespace {

constexpr uint64_t kFirst = 256 * kKiB;  // of the disk: what is looked at, and as much at its end
constexpr size_t kMost = 64;             // rounds of Map

void Require(bool condition) {
  if (!condition) std::abort();
}

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
      if (extent.kind == Kind::kData)
        Require(extent.store && extent.host.length == extent.guest.length);
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
  const uint64_t size = layer.info().size;
  MapAndRead(layer, Range{0, std::min(size, kFirst)});
  if (size > kFirst) MapAndRead(layer, Range{size - kFirst, kFirst});
}

// `small`: blocks are moved, too.
void WriteSome(Layer& layer, ConstBytes input, bool small) {
  uint64_t size = layer.info().size, seed = input.size();
  ConstBytes piece = input.first(std::min<size_t>(input.size(), 1000));
  for (int i = 0; i < 4 && size > piece.size(); ++i) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    uint64_t room = size - piece.size();
    (void)Write(layer, (seed >> 20) % std::min(room + 1, i % 2 == 0 ? kFirst : room + 1), piece)
        .has_value();
  }
  if (size > 0) {
    (void)layer.Discard(Range{0, std::min<uint64_t>(size, 128 * kKiB)}, Kind::kZero).has_value();
  }
  (void)layer.Flush().has_value();
  if (!small || size > kGiB) return;
  for (uint64_t next : {size + 70001, size / 2, size * 2 + kMiB}) {
    (void)layer.resizer()->Resize(next, Preallocation::kOff).has_value();
  }
  (void)layer.Flush().has_value();
}

}  // namespace
}  // namespace platter::vdi

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::vdi;
  ConstBytes input = std::as_bytes(std::span(data, size));
  MemoryStore image(input);
  // Into memory: copies of hostile blocks would fill all of it.
  auto header = ParseHeader(input.first(std::min<size_t>(input.size(), kSector)));
  const bool small = header.has_value() && header->stride() <= kMiB;
  OpenOptions options;
  if (auto layer = kVdiFormat.open(image.Clone(), options); layer.has_value()) ReadEnds(**layer);
  options.writable = true;
  if (auto layer = kVdiFormat.open(image.Clone(), options); layer.has_value()) {
    WriteSome(**layer, input, small);
    ReadEnds(**layer);
  }
  options.writable = false;
  options.info_only = true;
  (void)kVdiFormat.open(image.Clone(), options).has_value();
  for (auto repair : {CheckOptions::kNone, CheckOptions::kLeaks, CheckOptions::kAll}) {
    if (repair != CheckOptions::kNone && !small) continue;
    auto copy = image.Clone();
    CheckOptions check;
    check.repair = repair;
    auto report = kVdiFormat.check(*copy, options, check);
    if (!report.has_value() || repair != CheckOptions::kAll) continue;
    auto again = kVdiFormat.check(*copy, options, {});
    Require(again.has_value() && again->corruptions == report->corruptions &&
            again->leaks == report->leaks);
  }
  return 0;
}
