#include "formats/vhd/vhd_parse.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "formats/foreign_names.h"

namespace platter::vhd {

namespace {

template <size_t kSize>
std::string Text(const char (&from)[kSize]) {
  return std::string(from, kSize);
}

// "file://./x.vhd", "file:///vm/x.vhd", "file://localhost/vm/x.vhd", with %20 and the like.
std::optional<std::string> PathOfUrl(std::string_view url) {
  constexpr std::string_view kScheme = "file://", kHost = "localhost";
  url = url.substr(0, url.find('\0'));
  if (!url.starts_with(kScheme)) return std::nullopt;
  url.remove_prefix(kScheme.size());
  if (url.starts_with(kHost)) url.remove_prefix(kHost.size());
  auto digit = [](char c) {
    return c >= '0' && c <= '9'                     ? c - '0'
           : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
                                                    : -1;
  };
  std::string path;
  for (size_t i = 0; i < url.size(); ++i) {
    int high = url[i] == '%' && i + 2 < url.size() ? digit(url[i + 1]) : -1;
    int low = high >= 0 ? digit(url[i + 2]) : -1;
    path += low >= 0 ? static_cast<char>(high * 16 + low) : url[i];
    if (low >= 0) i += 2;
  }
  if (path.empty()) return std::nullopt;
  return path;
}

}  // namespace

Geometry GeometryOf(uint64_t bytes) {
  const uint64_t total = std::min(bytes, kMostGeometry) / kSector;
  Geometry geometry;
  uint64_t tracks = 0;  // cylinders times heads
  if (total >= 65535 * 16 * 63) {
    geometry = {.heads = 16, .sectors = 255};
    tracks = total / 255;
  } else {
    geometry.sectors = 17;
    tracks = total / 17;
    geometry.heads = std::max<uint32_t>(4, static_cast<uint32_t>((tracks + 1023) / 1024));
    if (tracks >= uint64_t{geometry.heads} * 1024 || geometry.heads > 16) {
      geometry = {.heads = 16, .sectors = 31};
      tracks = total / 31;
    }
    if (tracks >= uint64_t{geometry.heads} * 1024) {
      geometry = {.heads = 16, .sectors = 63};
      tracks = total / 63;
    }
  }
  geometry.cylinders = static_cast<uint32_t>(tracks / geometry.heads);
  return geometry;
}

uint32_t ChecksumOf(ConstBytes bytes, size_t at) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i < at || i >= at + 4) sum += std::to_integer<uint32_t>(bytes[i]);
  }
  return ~sum;
}

bool HasFooterCookie(ConstBytes bytes) {
  return bytes.size() >= 8 && AsText(bytes.first(8)) == kFooterCookie;
}

Result<Footer> ParseFooter(ConstBytes bytes) {
  std::array<std::byte, kSector> whole{};
  std::copy_n(bytes.begin(), std::min<size_t>(bytes.size(), kSector), whole.begin());
  auto disk = *LoadAt<DiskFooter>(whole, 0);
  if (!HasFooterCookie(whole)) return Fail(Code::kCorrupt, "it does not begin with 'conectix'");
  uint32_t sum = ChecksumOf(whole, offsetof(DiskFooter, checksum));
  if (disk.checksum != sum) {
    return Fail(Code::kCorrupt, "its checksum is {:#010x}, its bytes have {:#010x}",
                uint32_t{disk.checksum}, sum);
  }
  if (disk.version >> 16 != kVersion >> 16) {
    return Fail(Code::kUnsupported, "its version is {:#010x}; 1.0 is known",
                uint32_t{disk.version});
  }
  uint32_t type = disk.type;
  if (type < 2 || type > 4) {
    return Fail(Code::kUnsupported,
                "its disk type is {}; fixed (2), dynamic (3) and differencing (4) are known", type);
  }
  Footer footer{.features = disk.features,
                .data_offset = disk.data_offset,
                .timestamp = disk.timestamp,
                .creator = Text(disk.creator),
                .host_os = Text(disk.host_os),
                .creator_version = disk.creator_version,
                .original_size = disk.original_size,
                .current_size = disk.current_size,
                .geometry = {disk.cylinders, disk.heads, disk.sectors_per_track},
                .type = static_cast<DiskType>(type),
                .saved_state = disk.saved_state};
  std::memcpy(footer.id.data(), disk.id, sizeof disk.id);
  std::ranges::copy(disk.reserved, footer.reserved.begin());
  return footer;
}

DiskFooter EncodeFooter(const Footer& footer) {
  DiskFooter disk{};
  std::memcpy(disk.cookie, kFooterCookie, sizeof disk.cookie);
  disk.features = footer.features;
  disk.version = kVersion;
  disk.data_offset = footer.data_offset;
  disk.timestamp = footer.timestamp;
  footer.creator.copy(disk.creator, sizeof disk.creator);
  disk.creator_version = footer.creator_version;
  footer.host_os.copy(disk.host_os, sizeof disk.host_os);
  disk.original_size = footer.original_size;
  disk.current_size = footer.current_size;
  disk.cylinders = static_cast<uint16_t>(footer.geometry.cylinders);
  disk.heads = static_cast<uint8_t>(footer.geometry.heads);
  disk.sectors_per_track = static_cast<uint8_t>(footer.geometry.sectors);
  disk.type = static_cast<uint32_t>(footer.type);
  std::memcpy(disk.id, footer.id.data(), sizeof disk.id);
  disk.saved_state = footer.saved_state;
  std::ranges::copy(footer.reserved, disk.reserved);
  disk.checksum = ChecksumOf(AsBytes(disk), offsetof(DiskFooter, checksum));
  return disk;
}

SizeChoice ChooseSize(const Footer& footer, std::optional<bool> want_geometry) {
  const uint64_t current = footer.current_size, geometry = footer.geometry.bytes();
  const bool by_creator =
      footer.creator == "vpc " || footer.creator == "vs  " || footer.creator == "qemu";
  // The largest geometry stands for all larger disks; one that says more than the current size
  // describes no disk that there ever was.
  const bool usable =
      geometry != 0 && geometry < kMostGeometry && (geometry <= current || current == 0);
  if (usable && want_geometry.value_or(by_creator)) return {geometry, true};
  return {current, false};
}

Result<Header> ParseHeader(ConstBytes bytes) {
  auto disk = LoadAt<DiskHeader>(bytes, 0);
  if (!disk) return Fail(Code::kCorrupt, "it is cut short");
  if (Text(disk->cookie) != kHeaderCookie) {
    return Fail(Code::kCorrupt, "it does not begin with 'cxsparse'");
  }
  uint32_t sum = ChecksumOf(AsBytes(*disk), offsetof(DiskHeader, checksum));
  if (disk->checksum != sum) {
    return Fail(Code::kCorrupt, "its checksum is {:#010x}, its bytes have {:#010x}",
                uint32_t{disk->checksum}, sum);
  }
  if (disk->version >> 16 != kVersion >> 16) {
    return Fail(Code::kUnsupported, "its version is {:#010x}; 1.0 is known",
                uint32_t{disk->version});
  }
  Header header{
      .table_offset = disk->table_offset,
      .table_entries = disk->table_entries,
      .block_size = disk->block_size,
      .parent_timestamp = disk->parent_timestamp,
      .parent_name = FromUtf16(std::as_bytes(std::span(disk->parent_name)), std::endian::big)};
  if (header.block_size < kLeastBlock || header.block_size > kMostBlock ||
      !std::has_single_bit(header.block_size)) {
    return Fail(Code::kCorrupt, "its block size is {}; powers of two from {} to {} are valid",
                header.block_size, kLeastBlock, kMostBlock);
  }
  if (!IsAligned(header.table_offset, kSector) || header.table_offset > INT64_MAX) {
    return Fail(Code::kCorrupt, "its table is at {:#x}, which is no sector", header.table_offset);
  }
  std::memcpy(header.parent_id.data(), disk->parent_id, sizeof disk->parent_id);
  for (const DiskLocator& locator : disk->locators) {
    if (locator.code[0] == 0) continue;
    header.locators.push_back({Text(locator.code), {locator.offset, locator.length}});
  }
  return header;
}

void SealHeader(DiskHeader& header) {
  header.checksum = ChecksumOf(AsBytes(header), offsetof(DiskHeader, checksum));
}

std::optional<std::string> PathOfLocator(std::string_view code, ConstBytes data) {
  if (code == "W2ku" || code == "W2ru") {
    return FromWindowsPath(FromUtf16(data, std::endian::little));
  }
  std::string_view text = AsText(data);
  if (code == "MacX") return PathOfUrl(text);
  if (code == "Wi2k" || code == "Wi2r") return FromWindowsPath(text.substr(0, text.find('\0')));
  return std::nullopt;  // "Mac " holds an alias: numbers of a volume that is elsewhere
}

std::optional<Batmap> ParseBatmap(ConstBytes bytes, uint64_t blocks) {
  auto disk = LoadAt<DiskBatmap>(bytes, 0);
  if (!disk || Text(disk->cookie) != kBatmapCookie) return std::nullopt;
  Batmap batmap{{disk->offset, disk->sectors * kSector}, disk->checksum};
  if (batmap.map.offset > INT64_MAX || batmap.map.length * 8 < blocks) return std::nullopt;
  return batmap;
}

uint64_t RunOfBits(ConstBytes bits, uint64_t first, uint64_t end) {
  const bool value = BitAt(bits, first);
  const std::byte same{value ? uint8_t{0xff} : uint8_t{0}};
  uint64_t at = first + 1;
  while (at < end) {
    if (at % 8 == 0 && bits[at / 8] == same) {
      at += 8;
    } else if (BitAt(bits, at) == value) {
      ++at;
    } else {
      break;
    }
  }
  return std::min(at, end) - first;
}

void SetBits(Bytes bits, uint64_t first, uint64_t end, bool value) {
  for (uint64_t at = first; at < end;) {
    if (at % 8 == 0 && at + 8 <= end) {
      bits[at / 8] = std::byte{value ? uint8_t{0xff} : uint8_t{0}};
      at += 8;
      continue;
    }
    std::byte bit{static_cast<uint8_t>(0x80 >> at % 8)};
    bits[at / 8] = value ? bits[at / 8] | bit : bits[at / 8] & ~bit;
    ++at;
  }
}

}  // namespace platter::vhd
