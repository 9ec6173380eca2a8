// A whole image.
//
// The input is a list of changes to a sound image, since a file of arbitrary bytes would never get
// past its checksums: 4 bytes of where, 1 of how many, and the bytes. Checksums of headers and
// region tables are made right afterwards. The first byte chooses the image.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/endian.h"
#include "formats/testing/open_fuzz.h"
#include "formats/vhdx/vhdx.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_parse.h"
#include "io/codec/crc32c.h"

namespace platter::vhdx {
namespace {

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
  UseImage(kVhdxFormat, *image, input, {});
  return 0;
}
