// A whole image of arbitrary bytes: opened and read, opened for writing and written, discarded,
// resized, checked and repaired. Nothing is demanded of a damaged image but that nothing breaks;
// what the layer says must keep to its contract.
//
// The first byte says which checksums are made right first (footer, copy, header), without which
// hardly any input would get further.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "formats/vhd/vhd.h"
#include "formats/vhd/vhd_parse.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"

namespace platter::vhd {
namespace {

constexpr uint64_t kFirst = 256 * kKiB;  // of the disk: what is looked at, and as much at its end

void Require(bool condition) {
  if (!condition) std::abort();
}

void Seal(std::vector<std::byte>& image, uint64_t at, size_t length, size_t checksum) {
  if (!FitsIn(at, length, image.size())) return;
  Bytes part = Bytes(image).subspan(at, length);
  StoreAt(part, checksum, be32(ChecksumOf(part, checksum)));
}

std::vector<std::byte> ImageOf(ConstBytes input) {
  if (input.empty()) return {};
  std::vector<std::byte> image(input.begin() + 1, input.end());
  auto which = std::to_integer<uint8_t>(input[0]);
  if (which & 1) Seal(image, 0, kSector, offsetof(DiskFooter, checksum));
  if ((which & 2) && image.size() >= kSector) {
    Seal(image, image.size() - kSector, kSector, offsetof(DiskFooter, checksum));
  }
  if (which & 4) {
    auto at = LoadAt<be64>(image, offsetof(DiskFooter, data_offset));
    if (at) Seal(image, *at, sizeof(DiskHeader), offsetof(DiskHeader, checksum));
  }
  return image;
}

void MapAndRead(Layer& layer, Range range) {
  std::vector<Extent> extents(7);
  uint64_t at = range.offset;
  for (size_t round = 0; round < 64 && at < range.end(); ++round) {
    Pin pin = layer.Hold();
    auto count = layer.Map(Range::FromTo(at, range.end()), extents);
    if (!count.has_value()) break;
    Require(*count > 0 && *count <= extents.size());
    for (size_t i = 0; i < *count; ++i) {
      const Extent& extent = extents[i];
      Require(extent.guest.offset == at && !extent.guest.empty());
      Require(extent.guest.end() <= range.end());
      if (extent.kind == Kind::kData) Require(extent.store != nullptr);
      if (extent.kind == Kind::kData) Require(extent.host.length == extent.guest.length);
      at = extent.guest.end();
    }
  }
  std::vector<std::byte> bytes(16 * kKiB);
  for (at = range.offset; at < range.end(); at += bytes.size()) {
    Bytes part = Bytes(bytes).first(std::min<uint64_t>(bytes.size(), range.end() - at));
    (void)Read(layer, at, part).has_value();
  }
}

void ReadEnds(Layer& layer) {
  uint64_t size = layer.info().size;
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
  for (Kind leave : {Kind::kZero, Kind::kParent}) {
    if (size == 0) break;
    (void)layer.Discard(Range{size / 3, std::min<uint64_t>(size - size / 3, kFirst)}, leave)
        .has_value();
  }
  (void)layer.Flush().has_value();
  Resizer* resizer = layer.resizer();
  if (resizer != nullptr && size < kGiB) {
    (void)resizer->Resize(RoundUp(size + kMiB, kSector), Preallocation::kOff).has_value();
    (void)resizer->Resize(RoundDown(size / 2, kSector), Preallocation::kOff).has_value();
  }
  (void)layer.Flush().has_value();
}

}  // namespace
}  // namespace platter::vhd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::vhd;
  ConstBytes input = std::as_bytes(std::span(data, size));
  const std::vector<std::byte> bytes = ImageOf(input);
  MemoryStore image{ConstBytes(bytes)};
  OpenOptions options;
  if (auto layer = kVhdFormat.open(image.Clone(), options); layer.has_value())
    vhd::ReadEnds(**layer);
  options.writable = true;
  if (auto layer = kVhdFormat.open(image.Clone(), options); layer.has_value()) {
    WriteSome(**layer, input);
    vhd::ReadEnds(**layer);
  }
  options.writable = false;
  options.info_only = true;
  (void)kVhdFormat.open(image.Clone(), options).has_value();
  for (auto repair : {CheckOptions::kNone, CheckOptions::kLeaks, CheckOptions::kAll}) {
    auto copy = image.Clone();
    CheckOptions check;
    check.repair = repair;
    (void)kVhdFormat.check(*copy, options, check).has_value();
  }
  return 0;
}
