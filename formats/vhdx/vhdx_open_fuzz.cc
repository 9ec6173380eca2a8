// A whole image: opened and read, opened for writing and written, discarded, resized, checked and
// repaired. Nothing is demanded of a damaged image but that nothing breaks.
//
// The input is a list of changes to a sound image, since a file of arbitrary bytes would never get
// past its checksums: 4 bytes of where, 1 of how many, and the bytes. Checksums of headers and
// region tables are made right afterwards. The first byte chooses the image.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "base/endian.h"
#include "formats/vhdx/vhdx.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_parse.h"
#include "io/codec/crc32c.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"

namespace platter::vhdx {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

constexpr uint64_t kDisk = 5 * kMiB;

// Sound images of three kinds with something in them; the last has a log to be replayed.
std::unique_ptr<MemoryStore> MakeSound(int kind) {
  auto store = std::make_unique<MemoryStore>();
  CreateOptions options;
  options.size = kDisk;
  options.reproducible = true;
  options.options["block_size"] = "1M";
  if (kind == 1) {
    options.parent = Reference();
    options.parent_file = ParentFile();
    options.parent_file->info.format = "vhdx";
    options.parent_file->info.identity.version = "00112233-4455-6677-8899-aabbccddeeff";
    options.parent_file->relative = "parent.vhdx";
  }
  Require(kVhdxFormat.create(*store, options).has_value());
  Require(store->Resize(8 * kMiB).has_value());
  const uint64_t bat = 3 * kMiB;
  const uint64_t state = kind == 1 ? 7 : 6;
  Require(store->Write(bat, AsBytes(le64(4 * kMiB | state))).has_value());
  if (kind == 1) {
    Require(store->Write(bat + 8192 * 8, AsBytes(le64(5 * kMiB | 6))).has_value());
    Require(store->Write(5 * kMiB, AsBytes(le64(0x0123456789abcdef))).has_value());
  }
  if (kind == 2) {
    LogEntry entry;
    entry.sequence = 3;
    entry.log_id.fill(std::byte{9});
    entry.flushed_size = entry.last_size = 8 * kMiB;
    std::vector<std::byte> page(kLogSector, std::byte{0x33});
    auto bytes = BuildLogEntry(entry, {{4 * kMiB, page}, {6 * kMiB, page}}, {{5 * kMiB, 8192}});
    Require(store->Write(kMiB, ConstBytes(bytes)).has_value());
    Header header;
    header.sequence = 9;
    header.log = {kMiB, kMiB};
    header.log_id = entry.log_id;
    for (uint64_t at : kHeaderOffsets) {
      Require(store->Write(at, ConstBytes(BuildHeader(header))).has_value());
    }
  }
  return store;
}

// The checksum in bytes 4 to 7 of the structure at `at`.
void MendChecksum(MemoryStore& image, uint64_t at, uint64_t length) {
  std::vector<std::byte> bytes(length);
  if (!image.Read(at, Bytes(bytes)).has_value()) return;
  StoreAt(Bytes(bytes), 4, le32(0));
  (void)image.Write(at + 4, AsBytes(le32(Crc32c(bytes)))).has_value();
}

// What is interesting is near the start of each structure: places are folded to there.
void Change(MemoryStore& image, ConstBytes input) {
  while (input.size() > 5) {
    uint32_t where = *LoadAt<le32>(input, 0);
    size_t count = std::min<size_t>(1 + std::to_integer<size_t>(input[4]) % 16, input.size() - 5);
    constexpr uint64_t kPlaces[] = {
        0,        64 * kKiB,  128 * kKiB,           192 * kKiB, 256 * kKiB,
        kMiB,     2 * kMiB,   2 * kMiB + 64 * kKiB, 3 * kMiB,   3 * kMiB + 64 * kKiB,
        5 * kMiB, kMiB + 4096};
    uint64_t at = kPlaces[where % std::size(kPlaces)] + (where >> 8) % 512;
    (void)image.Write(at, input.subspan(5, count)).has_value();
    input = input.subspan(5 + count);
  }
  for (uint64_t at : kHeaderOffsets) MendChecksum(image, at, kHeaderBytes);
  for (uint64_t at : kRegionTableOffsets) MendChecksum(image, at, kRegionTableBytes);
  auto entry = LogEntryDisk{};
  std::vector<std::byte> head(sizeof entry);
  if (!image.Read(kMiB, Bytes(head)).has_value()) return;
  uint64_t length = LoadAt<LogEntryDisk>(head, 0)->entry_length;
  if (length >= kLogSector && length <= kMiB) MendChecksum(image, kMiB, length);
}

void MapAndRead(Layer& layer) {
  const uint64_t size = std::min<uint64_t>(layer.info().size, 64 * kMiB);
  std::vector<Extent> extents(5);
  for (uint64_t at = 0, round = 0; at < size && round < 64; ++round) {
    auto count = layer.Map(Range::FromTo(at, size), extents);
    if (!count.has_value()) break;
    Require(*count > 0 && *count <= extents.size());
    for (size_t i = 0; i < *count; ++i) {
      const Extent& extent = extents[i];
      Require(extent.guest.offset == at && !extent.guest.empty() && extent.guest.end() <= size);
      if (extent.kind == Kind::kData) {
        Require(extent.store != nullptr && extent.host.length == extent.guest.length);
      }
      at = extent.guest.end();
    }
  }
  std::vector<std::byte> bytes(32 * kKiB);
  for (uint64_t at = 0; at + bytes.size() <= std::min(size, kDisk); at += 512 * kKiB) {
    (void)Read(layer, at, Bytes(bytes)).has_value();
  }
}

void WriteSome(Layer& layer, ConstBytes input) {
  const uint64_t size = layer.info().size;
  ConstBytes piece = input.first(std::min<size_t>(input.size(), 700));
  for (uint64_t at : {uint64_t{100}, kMiB - 300, 3 * kMiB + 5}) {
    if (FitsIn(at, piece.size(), size)) (void)Write(layer, at, piece).has_value();
  }
  (void)layer.Flush().has_value();
  if (size >= 2 * kMiB) (void)Zero(layer, {kMiB - 100, kMiB + 100}, true).has_value();
  (void)layer.Flush().has_value();
  if (layer.resizer() != nullptr && size < kGiB) {
    (void)layer.resizer()->Resize(size / 2 / 4096 * 4096, Preallocation::kOff).has_value();
    (void)layer.resizer()->Resize(size + 4096, Preallocation::kOff).has_value();
  }
}

}  // namespace
}  // namespace platter::vhdx

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::vhdx;
  if (size == 0) return 0;
  static const std::unique_ptr<MemoryStore> kSound[] = {MakeSound(0), MakeSound(1), MakeSound(2)};
  ConstBytes input = std::as_bytes(std::span(data, size)).subspan(1);
  auto image = kSound[data[0] % std::size(kSound)]->Clone();
  Change(*image, input);
  OpenOptions options;
  if (auto layer = kVhdxFormat.open(image->Clone(), options); layer.has_value()) {
    MapAndRead(**layer);
  }
  options.writable = true;
  if (auto layer = kVhdxFormat.open(image->Clone(), options); layer.has_value()) {
    WriteSome(**layer, input);
    MapAndRead(**layer);
  }
  for (auto repair : {CheckOptions::kNone, CheckOptions::kLeaks, CheckOptions::kAll}) {
    auto copy = image->Clone();
    CheckOptions check;
    check.repair = repair;
    (void)kVhdxFormat.check(*copy, options, check).has_value();
  }
  return 0;
}
