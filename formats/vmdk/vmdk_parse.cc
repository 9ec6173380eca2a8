#include "formats/vmdk/vmdk_parse.h"

#include <algorithm>

#include "base/math.h"

namespace platter::vmdk {

namespace {

// A grain is a unit of the engine: it is read, packed and unpacked as a whole.
constexpr uint64_t kMostGrain = 64 * kMiB;
constexpr uint64_t kMostPackedGrain = 8 * kMiB;
// Entries of a grain table: the formats have 512, 4096 and 4096.
constexpr uint32_t kMostTableEntries = 65536;
// Guest sizes are below 2^63.
constexpr uint64_t kMostSectors = uint64_t{1} << 54;

// Sectors as bytes; nothing where they do not fit.
std::optional<uint64_t> ToBytes(uint64_t sectors) {
  if (sectors > kMostSectors) return std::nullopt;
  return sectors * kSector;
}

Result<uint64_t> Place(std::string_view what, uint64_t sector) {
  auto bytes = ToBytes(sector);
  if (!bytes)
    return Fail(Code::kCorrupt, "header: {} at sector {:#x} is out of range", what, sector);
  return *bytes;
}

Result<> SetSizes(SparseGeometry& g, uint64_t capacity, uint64_t grain, uint64_t entries) {
  auto bytes = ToBytes(capacity);
  if (!bytes) return Fail(Code::kCorrupt, "header: a capacity of {:#x} sectors", capacity);
  if (grain == 0 || grain > kMostGrain / kSector) {
    return Fail(Code::kCorrupt, "header: a grain of {} sectors (1 to {})", grain,
                kMostGrain / kSector);
  }
  if (g.compressed() && grain > kMostPackedGrain / kSector) {
    return Fail(Code::kUnsupported, "header: a compressed grain of {} sectors (1 to {})", grain,
                kMostPackedGrain / kSector);
  }
  if (entries == 0 || entries > kMostTableEntries) {
    return Fail(Code::kCorrupt, "header: grain tables of {} entries (1 to {})", entries,
                kMostTableEntries);
  }
  g.capacity = *bytes;
  g.grain = grain * kSector;
  g.table_entries = static_cast<uint32_t>(entries);
  g.directory_entries = DivideUp(g.capacity, g.table_span());
  return {};
}

Result<SparseGeometry> ParseHosted(ConstBytes head) {
  auto header = LoadAt<SparseHeader>(head, 0);
  if (!header) return Fail(Code::kCorrupt, "header: the file ends after {} bytes", head.size());
  SparseGeometry g;
  g.version = header->version;
  g.flags = header->flags;
  if (g.version > 3) {
    return Fail(Code::kUnsupported, "header: version {} (1 to 3 are known)", g.version);
  }
  if ((g.flags & kNewlineTest) &&
      !std::equal(kNewlineBytes.begin(), kNewlineBytes.end(), header->newline_test)) {
    return Fail(Code::kCorrupt,
                "header: the newline test failed; the file was transferred as text");
  }
  if (g.compressed() && header->compression != kCompressionZlib) {
    return Fail(Code::kUnsupported, "header: compression method {}", uint16_t{header->compression});
  }
  g.unclean = header->unclean_shutdown != 0;
  TRY(SetSizes(g, header->capacity, header->grain_size, header->table_entries));
  g.at_end = header->gd_offset == kAtEnd;
  if (!g.at_end) g.directory = TRY(Place("grain directory", header->gd_offset));
  if (g.flags & kRedundant) {
    g.redundant = TRY(Place("redundant grain directory", header->rgd_offset));
  }
  if (header->descriptor_offset != 0) {
    g.descriptor.offset = TRY(Place("descriptor", header->descriptor_offset));
    g.descriptor.length = TRY(Place("end of the descriptor", header->descriptor_size));
  }
  // Only where new grains may go hangs on this, and writers look at the file's size as well.
  g.overhead = ToBytes(header->overhead).value_or(0);
  return g;
}

Result<SparseGeometry> ParseCowd(ConstBytes head) {
  auto header = LoadAt<CowdHeader>(head, 0);
  if (!header) return Fail(Code::kCorrupt, "header: the file ends after {} bytes", head.size());
  SparseGeometry g;
  g.kind = SparseKind::kCowd;
  g.version = header->version;
  if (g.version != 1) return Fail(Code::kUnsupported, "header: COWD version {}", g.version);
  TRY(SetSizes(g, header->capacity, header->grain_size, kCowdTableEntries));
  if (header->directory_entries < g.directory_entries) {
    return Fail(Code::kCorrupt, "header: a grain directory of {} entries, and {} are needed",
                uint32_t{header->directory_entries}, g.directory_entries);
  }
  g.directory = TRY(Place("grain directory", header->directory_offset));
  return g;
}

Result<SparseGeometry> ParseSe(ConstBytes head) {
  auto header = LoadAt<SeHeader>(head, 0);
  if (!header) return Fail(Code::kCorrupt, "header: the file ends after {} bytes", head.size());
  SparseGeometry g;
  g.kind = SparseKind::kSe;
  if (header->version != kSeVersion) {
    return Fail(Code::kUnsupported, "header: seSparse version {:#x}", uint64_t{header->version});
  }
  if (header->flags != 0) {
    return Fail(Code::kUnsupported, "header: seSparse flags {:#x}", uint64_t{header->flags});
  }
  g.version = 2;
  const uint64_t per_sector = kSector / sizeof(le64);
  uint64_t table = header->table_size;
  if (table > kMostTableEntries / per_sector) {
    return Fail(Code::kCorrupt, "header: grain tables of {} sectors", table);
  }
  TRY(SetSizes(g, header->capacity, header->grain_size, table * per_sector));
  uint64_t directory_sectors = header->directory_size;
  if (directory_sectors < DivideUp(g.directory_entries, per_sector)) {
    return Fail(Code::kCorrupt, "header: a grain directory of {} sectors for {} entries",
                directory_sectors, g.directory_entries);
  }
  g.directory = TRY(Place("grain directory", header->directory_offset));
  g.se_tables = TRY(Place("grain tables", header->tables_offset));
  g.se_tables_length = TRY(Place("end of the grain tables", header->tables_size));
  g.se_grains = TRY(Place("grains", header->grains_offset));
  if (header->volatile_header_offset != 1) {
    return Fail(Code::kUnsupported, "header: the volatile header is at sector {}, not 1",
                uint64_t{header->volatile_header_offset});
  }
  return g;
}

}  // namespace

std::optional<SparseKind> SparseKindOf(ConstBytes head) {
  auto magic = LoadAt<le32>(head, 0);
  if (!magic) return std::nullopt;
  if (*magic == kSparseMagic) return SparseKind::kHosted;
  if (*magic == kCowdMagic) return SparseKind::kCowd;
  auto wide = LoadAt<le64>(head, 0);
  if (wide && *wide == kSeMagic) return SparseKind::kSe;
  return std::nullopt;
}

Result<SparseGeometry> ParseSparse(ConstBytes head) {
  auto kind = SparseKindOf(head);
  if (!kind) return Fail(Code::kCorrupt, "header: there is no magic of a sparse extent");
  switch (*kind) {
    case SparseKind::kCowd: return ParseCowd(head);
    case SparseKind::kSe: return ParseSe(head);
    case SparseKind::kHosted: break;
  }
  return ParseHosted(head);
}

Result<SparseGeometry> ParseFooter(const SparseGeometry& header, ConstBytes tail) {
  auto marker = LoadAt<MetadataMarker>(tail, 0), end = LoadAt<MetadataMarker>(tail, 2 * kSector);
  if (!marker || !end) return Fail(Code::kCorrupt, "footer: the file is too short for one");
  if (marker->size != 0 || marker->type != kMarkerFooter) {
    return Fail(Code::kCorrupt, "footer: no footer marker at the third sector from the end");
  }
  if (end->sectors != 0 || end->size != 0 || end->type != kMarkerEnd) {
    return Fail(Code::kCorrupt, "footer: no end-of-stream marker in the last sector");
  }
  ConstBytes sector = tail.subspan(kSector, kSector);
  if (SparseKindOf(sector) != SparseKind::kHosted) {
    return Fail(Code::kCorrupt, "footer: there is no magic");
  }
  SparseGeometry footer = TRY_AS("footer", ParseHosted(sector));
  if (footer.at_end) {
    return Fail(Code::kCorrupt, "footer: it does not say where the grain directory is");
  }
  if (footer.capacity != header.capacity || footer.grain != header.grain ||
      footer.table_entries != header.table_entries || footer.flags != header.flags) {
    return Fail(Code::kCorrupt, "footer: it contradicts the header");
  }
  footer.descriptor = header.descriptor;
  return footer;
}

Result<> ParseSeVolatile(ConstBytes sector) {
  auto header = LoadAt<SeVolatileHeader>(sector, 0);
  if (!header) return Fail(Code::kCorrupt, "volatile header: the file ends before it");
  if (header->magic != kSeVolatileMagic) {
    return Fail(Code::kCorrupt, "volatile header: magic {:#x}", uint64_t{header->magic});
  }
  if (header->replay_journal != 0) {
    return Fail(Code::kUnsupported,
                "volatile header: the journal has to be replayed first, which only ESXi can do "
                "(open the disk there once)");
  }
  return {};
}

Result<Grain> DecodeGrain(const SparseGeometry& g, uint64_t entry) {
  if (entry == 0) return Grain{};
  if (g.kind != SparseKind::kSe) {
    if (entry == 1 && (g.flags & kZeroedGrains)) return Grain{Grain::kZero, 0};
    return Grain{Grain::kData, entry * kSector};
  }
  // The top four bits say what it is; of a grain's number the low twelve bits come first.
  switch (entry >> 60) {
    case 1:  // unmapped by the guest
    case 2: return Grain{Grain::kZero, 0};
    case 3: break;
    default: return Fail(Code::kCorrupt, "grain table entry {:#x} of no known kind", entry);
  }
  uint64_t number = (entry >> 48 & 0xfff) | (entry & 0xffffffffffff) << 12;
  auto bytes = CheckedMultiply(number, g.grain);
  auto host = bytes ? CheckedAdd(*bytes, g.se_grains) : std::nullopt;
  if (!host) return Fail(Code::kCorrupt, "grain table entry {:#x} is out of range", entry);
  return Grain{Grain::kData, *host};
}

Result<uint64_t> DecodeTable(const SparseGeometry& g, uint64_t entry) {
  if (g.kind != SparseKind::kSe) return entry * kSector;
  if (entry == 0) return uint64_t{0};
  if (entry >> 32 != 0x10000000) {
    return Fail(Code::kCorrupt, "grain directory entry {:#x} of no known kind", entry);
  }
  uint64_t at = (entry & 0xffffffff) * g.table_bytes();
  if (!FitsIn(at, g.table_bytes(), g.se_tables_length)) {
    return Fail(Code::kCorrupt, "grain directory entry {:#x} names a table past their end", entry);
  }
  return g.se_tables + at;
}

uint64_t LoadEntry(const SparseGeometry& g, ConstBytes table, uint64_t index) {
  if (g.kind == SparseKind::kSe) return *LoadAt<le64>(table, index * 8);
  return *LoadAt<le32>(table, index * 4);
}

}  // namespace platter::vmdk
