// A whole image of arbitrary bytes: opened and read, opened for writing and written, discarded,
// resized, checked and repaired. Nothing is demanded of a damaged image but that nothing breaks;
// what the layer says must keep to its contract.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "formats/qcow2/qcow2.h"
#include "formats/qcow2/qcow2_parse.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"

namespace platter::qcow2 {
namespace {

constexpr uint64_t kFirst = 256 * kKiB;  // of the disk: what is looked at, and as much at its end
constexpr size_t kMost = 64;             // rounds of Map

void Require(bool condition) {
  if (!condition) std::abort();
}

class AnyDataFile : public Opener {
 public:
  Result<std::unique_ptr<Store>> OpenReference(const Reference&, bool) override {
    return std::make_unique<MemoryStore>(64 * kKiB);
  }
};

// Unlocking LUKS is fuzzed elsewhere, and slow.
const Secret* PassphraseFor(ConstBytes image) {
  static const Secret secret{AsBytes(std::string_view("x"))};
  auto header = ParseHeader(image);
  return header.has_value() && header->crypt_method == kCryptAes ? &secret : nullptr;
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
  (void)layer.Discard(Range{0, std::min<uint64_t>(size, 128 * kKiB)}, Kind::kZero).has_value();
  (void)layer.Flush().has_value();
  if (size > 0)
    (void)Zero(layer, Range{size / 2, std::min<uint64_t>(size - size / 2, 70000)}, true)
        .has_value();
  (void)layer.Flush().has_value();
  Resizer* resizer = layer.resizer();
  if (resizer != nullptr && size < kGiB) {
    (void)resizer->Resize(RoundUp(size + kMiB, 512), Preallocation::kOff).has_value();
  }
  (void)layer.Flush().has_value();
}

}  // namespace
}  // namespace platter::qcow2

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::qcow2;
  ConstBytes input = std::as_bytes(std::span(data, size));
  MemoryStore image(input);
  AnyDataFile opener;
  OpenOptions options;
  options.opener = &opener;
  options.secret = PassphraseFor(input);
  if (auto layer = kQcow2Format.open(image.Clone(), options); layer.has_value()) ReadEnds(**layer);
  options.writable = true;
  if (auto layer = kQcow2Format.open(image.Clone(), options); layer.has_value()) {
    WriteSome(**layer, input);
    ReadEnds(**layer);
  }
  options.writable = false;
  options.info_only = true;
  (void)kQcow2Format.open(image.Clone(), options).has_value();
  for (auto repair : {CheckOptions::kNone, CheckOptions::kLeaks, CheckOptions::kAll}) {
    auto copy = image.Clone();
    CheckOptions check;
    check.repair = repair;
    (void)kQcow2Format.check(*copy, options, check).has_value();
  }
  return 0;
}
