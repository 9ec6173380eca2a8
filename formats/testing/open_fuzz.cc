#include "formats/testing/open_fuzz.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "io/engine/engine.h"

namespace platter {
namespace {

constexpr uint64_t kFirst = 256 * kKiB;  // of the disk: what is looked at, and as much at its end
constexpr size_t kMostRounds = 64;       // of Map

void CheckExtent(const Extent& extent, uint64_t at, uint64_t end) {
  Require(extent.guest.offset == at && !extent.guest.empty() && extent.guest.end() <= end);
  if (extent.kind != Kind::kData) return;
  Require(extent.store != nullptr);
  Require(extent.packed() || extent.host.length == extent.guest.length);
}

void MapAndRead(Layer& layer, Range range) {
  std::vector<Extent> extents(7);
  uint64_t at = range.offset;
  for (size_t round = 0; round < kMostRounds && at < range.end(); ++round) {
    Pin pin = layer.Hold();
    auto count = layer.Map(Range::FromTo(at, range.end()), extents);
    if (!count.has_value()) break;
    Require(*count > 0 && *count <= extents.size());
    for (size_t i = 0; i < *count; ++i) {
      CheckExtent(extents[i], at, range.end());
      at = extents[i].guest.end();
    }
  }
  std::vector<std::byte> bytes(16 * kKiB);
  for (at = range.offset; at < range.end(); at += bytes.size()) {
    Bytes part = Bytes(bytes).first(std::min<uint64_t>(bytes.size(), range.end() - at));
    (void)Read(layer, at, part).has_value();
  }
}

void ReadEnds(Layer& layer) {
  const uint64_t size = layer.info().size;
  if (size == 0) return;
  MapAndRead(layer, Range{0, std::min(size, kFirst)});
  if (size > kFirst) MapAndRead(layer, Range{size - kFirst, kFirst});
}

void WriteSome(Layer& layer, ConstBytes input) {
  const uint64_t size = layer.info().size;
  if (size == 0) return;
  ConstBytes piece = input.first(std::min<size_t>(input.size(), 1000));
  uint64_t seed = input.size();
  for (int i = 0; i < 4 && size > piece.size(); ++i) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    const uint64_t room = size - piece.size();
    const uint64_t at = (seed >> 20) % std::min(room + 1, i % 2 == 0 ? kFirst : room + 1);
    (void)Write(layer, at, piece).has_value();
  }
  (void)layer.Discard(Range{0, std::min<uint64_t>(size, 128 * kKiB)}, Kind::kZero).has_value();
  (void)layer.Flush().has_value();
  const Range middle{size / 3, std::min<uint64_t>(size - size / 3, 70000)};
  (void)Zero(layer, middle, true).has_value();
  (void)layer.Discard(middle, Kind::kParent).has_value();
  (void)layer.Flush().has_value();
}

void ResizeIt(Layer& layer) {
  const uint64_t size = layer.info().size;
  Resizer* resizer = layer.resizer();
  if (resizer == nullptr || size >= kGiB) return;
  for (uint64_t next : {RoundUp(size + 70001, 4096), RoundDown(size / 2, 4096), 2 * size + kMiB}) {
    (void)resizer->Resize(next, Preallocation::kOff).has_value();
  }
  (void)layer.Flush().has_value();
}

void CheckIt(const Format& format, const MemoryStore& image, const OpenFuzz& what) {
  for (auto repair : {CheckOptions::kNone, CheckOptions::kLeaks, CheckOptions::kAll}) {
    if (repair != CheckOptions::kNone && !what.repair) continue;
    auto copy = image.Clone();
    auto report = format.check(*copy, what.options, CheckOptions{repair});
    if (!report.has_value() || repair != CheckOptions::kAll || !what.repairs_all) continue;
    auto again = format.check(*copy, what.options, {});
    Require(again.has_value() && again->corruptions == report->corruptions &&
            again->leaks == report->leaks);
  }
}

}  // namespace

void Require(bool condition) {
  if (!condition) std::abort();
}

void UseImage(const Format& format, const MemoryStore& image, ConstBytes input,
              const OpenFuzz& what) {
  OpenOptions options = what.options;
  if (auto layer = format.open(image.Clone(), options); layer.has_value()) ReadEnds(**layer);
  options.writable = true;
  if (auto layer = format.open(image.Clone(), options); layer.has_value()) {
    WriteSome(**layer, input);
    if (what.resize) ResizeIt(**layer);
    ReadEnds(**layer);
  }
  options.writable = false;
  options.info_only = true;
  (void)format.open(image.Clone(), options).has_value();
  CheckIt(format, image, what);
}

}  // namespace platter
