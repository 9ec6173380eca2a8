#include "cow/partitions.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/bytes.h"
#include "base/endian.h"
#include "base/math.h"
#include "formats/foreign_names.h"
#include "io/engine/engine.h"

namespace platter {
namespace {

constexpr size_t kMostLogical = 128;
constexpr uint64_t kMostTable = kMiB;  // bytes of GPT entries
constexpr uint8_t kProtective = 0xee;

// UEFI 5.2.1, "Legacy MBR Partition Record".
struct MbrEntry {
  uint8_t boot;  // 0 or 0x80
  uint8_t first_chs[3];
  uint8_t type;  // 0: unused
  uint8_t last_chs[3];
  le32 first, count;  // sectors

  bool extended() const { return type == 0x05 || type == 0x0f || type == 0x85; }
};
struct Mbr {
  std::array<std::byte, 446> code;
  std::array<MbrEntry, 4> entries;
  le16 magic;  // 0xaa55
};
static_assert(sizeof(Mbr) == 512);

// UEFI 5.3.2, "GPT Header".
struct GptHeader {
  std::array<char, 8> magic;  // "EFI PART"
  le32 revision, size, crc, reserved;
  le64 own, other, first_usable, last_usable;
  std::array<std::byte, 16> id;
  le64 table;  // sector
  le32 count, entry_size, table_crc;
};
static_assert(sizeof(GptHeader) == 92);

// UEFI 5.3.3, "GPT Partition Entry Array".
struct GptEntry {
  le32 type1;
  le16 type2, type3;
  std::array<unsigned char, 8> type4;
  std::array<std::byte, 16> id;
  le64 first, last;  // sectors, the last one included
  le64 attributes;
  std::array<std::byte, 72> name;  // UTF-16
};
static_assert(sizeof(GptEntry) == 128);

// Zlib's crc32, the one that GPT uses.
uint32_t Crc(ConstBytes bytes) {
  return static_cast<uint32_t>(
      crc32(0, reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uInt>(bytes.size())));
}

class TableReader {
 public:
  explicit TableReader(Layer& disk) : disk_(disk) {}

  Result<std::vector<Partition>> Run() {
    auto mbr = TRY(LoadMbr(0));
    if (!mbr) return std::move(found_);
    const bool protective = std::ranges::any_of(
        mbr->entries, [](const MbrEntry& entry) { return entry.type == kProtective; });
    if (!protective) {
      TRY(AddMbr(*mbr));
      return std::move(found_);
    }
    // The sector size is not on the disk; the header is in the second sector, and in the last one.
    for (uint64_t sector : {uint64_t{512}, uint64_t{4096}}) {
      for (uint64_t at : {sector, RoundDown(disk_.info().size, sector) - sector}) {
        if (TRY(AddGpt(at, sector))) return std::move(found_);
      }
    }
    return std::move(found_);
  }

 private:
  // Nothing where the disk ends before it.
  Result<std::optional<std::vector<std::byte>>> Load(uint64_t at, uint64_t size) {
    if (!FitsIn(at, size, disk_.info().size)) return std::nullopt;
    std::vector<std::byte> bytes(size);
    TRY_AS("partition table", Read(disk_, at, bytes));
    return bytes;
  }

  Result<std::optional<Mbr>> LoadMbr(uint64_t at) {
    auto bytes = TRY(Load(at, sizeof(Mbr)));
    if (!bytes) return std::nullopt;
    Mbr mbr = *LoadAt<Mbr>(*bytes, 0);
    // A boot sector of a file system ends in the same mark, and has code where the table would be.
    auto plausible = [](const MbrEntry& entry) { return entry.boot == 0 || entry.boot == 0x80; };
    if (mbr.magic != 0xaa55 || !std::ranges::all_of(mbr.entries, plausible)) return std::nullopt;
    return mbr;
  }

  void Add(uint32_t number, uint64_t first, uint64_t count, uint64_t sector, std::string type,
           std::string name) {
    auto offset = CheckedMultiply(first, sector), length = CheckedMultiply(count, sector);
    if (!offset || !length || *length == 0 || *offset == 0) return;
    if (!FitsIn(*offset, *length, disk_.info().size)) return;
    found_.push_back({number, {*offset, *length}, std::move(type), std::move(name)});
  }

  Result<> AddMbr(const Mbr& mbr) {
    const uint64_t sector = std::max<uint64_t>(disk_.info().sector, 512);
    uint32_t number = 0;
    std::optional<uint64_t> extended;
    for (const MbrEntry& entry : mbr.entries) {
      ++number;
      if (entry.type == 0) continue;
      if (entry.extended()) {
        if (!extended) extended = entry.first;
      } else {
        Add(number, entry.first, entry.count, sector, fmt::format("{:02x}", entry.type), "");
      }
    }
    if (extended) TRY(AddLogical(*extended, sector));
    return {};
  }

  Result<> AddLogical(uint64_t extended, uint64_t sector) {
    uint64_t at = extended;
    for (uint32_t i = 0; i < kMostLogical; ++i) {
      auto record = TRY(LoadMbr(at * sector));
      if (!record) return {};
      const MbrEntry &own = record->entries[0], &next = record->entries[1];
      if (own.type != 0) {
        Add(5 + i, at + own.first, own.count, sector, fmt::format("{:02x}", own.type), "");
      }
      if (!next.extended() || next.first == 0u) return {};
      at = extended + next.first;
    }
    return {};
  }

  // False if there is no good header at `at`.
  Result<bool> AddGpt(uint64_t at, uint64_t sector) {
    auto bytes = TRY(Load(at, 512));
    if (!bytes) return false;
    GptHeader header = *LoadAt<GptHeader>(*bytes, 0);
    const uint32_t size = header.size, crc = header.crc;
    if (AsText(AsBytes(header.magic)) != "EFI PART" || size < sizeof header || size > 512) {
      return false;
    }
    StoreAt(*bytes, offsetof(GptHeader, crc), le32(0));
    if (Crc(std::span(*bytes).first(size)) != crc) return false;

    const uint64_t entry_size = header.entry_size, count = header.count;
    auto table_at = CheckedMultiply(header.table, sector);
    if (!table_at || entry_size < sizeof(GptEntry) || entry_size * count > kMostTable) return false;
    auto table = TRY(Load(*table_at, entry_size * count));
    if (!table || Crc(*table) != header.table_crc) return false;
    for (uint32_t i = 0; i < count; ++i) {
      AddGptEntry(i + 1, *LoadAt<GptEntry>(*table, i * entry_size), sector);
    }
    return true;
  }

  void AddGptEntry(uint32_t number, const GptEntry& entry, uint64_t sector) {
    const uint64_t first = entry.first, last = entry.last;
    const bool unused =
        entry.type1 == 0u && entry.type2 == 0u && entry.type3 == 0u && IsZero(AsBytes(entry.type4));
    if (unused || last < first) return;
    const auto& t = entry.type4;
    Add(number, first, last - first + 1, sector,
        fmt::format("{:08x}-{:04x}-{:04x}-{:02x}{:02x}-{:02x}", uint32_t{entry.type1},
                    uint16_t{entry.type2}, uint16_t{entry.type3}, t[0], t[1],
                    fmt::join(std::span(t).subspan(2), "")),
        FromUtf16(entry.name, std::endian::little));
  }

  Layer& disk_;
  std::vector<Partition> found_;
};

}  // namespace

Result<std::vector<Partition>> ReadPartitions(Layer& disk) { return TableReader(disk).Run(); }

}  // namespace platter
