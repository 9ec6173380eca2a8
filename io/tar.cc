#include "io/tar.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

namespace platter {

namespace {

constexpr size_t kMostMembers = 10000;
constexpr size_t kMostHeaders = 50000;
constexpr uint64_t kMostExtension = kMiB;  // bytes of a long name or an extended header

struct Block {
  std::array<char, 100> name;
  std::array<char, 24> mode_uid_gid;
  std::array<char, 12> size;
  std::array<char, 12> mtime;
  std::array<char, 8> checksum;
  char type;
  std::array<char, 100> link_name;
  std::array<char, 8> magic_version;
  std::array<char, 80> owner_and_device;
  std::array<char, 155> prefix;
  std::array<char, 12> padding;
};
static_assert(sizeof(Block) == kTarBlock && alignof(Block) == 1);

// Text up to a NUL byte, or all of the field.
template <size_t n>
std::string_view TextOf(const std::array<char, n>& field) {
  std::string_view text(field.data(), n);
  return text.substr(0, text.find('\0'));
}

// Octal digits between spaces; or, if its first bit is set, a number in base 256.
std::optional<uint64_t> NumberOf(std::string_view field) {
  uint64_t value = 0;
  if ((static_cast<unsigned char>(field[0]) & 0x80) != 0) {
    for (size_t i = 0; i < field.size(); ++i) {
      const auto byte = static_cast<unsigned char>(i == 0 ? field[i] & 0x7f : field[i]);
      if (value >> 55 != 0) return std::nullopt;  // 2^63 and more
      value = value << 8 | byte;
    }
    return value;
  }
  field = field.substr(0, field.find('\0'));
  while (field.starts_with(' ')) field.remove_prefix(1);
  while (field.ends_with(' ')) field.remove_suffix(1);
  if (field.empty()) return 0;
  auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value, 8);
  if (error != std::errc() || end != field.data() + field.size()) return std::nullopt;
  return value;
}

// With the field itself taken for spaces. Some old programs summed up signed bytes.
bool ChecksumMatches(ConstBytes block, uint64_t expected) {
  int64_t as_unsigned = 0, as_signed = 0;
  for (size_t i = 0; i < kTarBlock; ++i) {
    const bool own = i >= offsetof(Block, checksum) && i < offsetof(Block, type);
    const auto byte = own ? uint8_t{' '} : std::to_integer<uint8_t>(block[i]);
    as_unsigned += byte;
    as_signed += static_cast<int8_t>(byte);
  }
  return expected == static_cast<uint64_t>(as_unsigned) ||
         expected == static_cast<uint64_t>(as_signed);
}

// One archive being walked through.
class Walker {
 public:
  explicit Walker(Store& store) : store_(store) {}

  Result<std::vector<TarMember>> Walk() {
    const uint64_t size = TRY(store_.Size());
    size_t headers = 0;
    for (uint64_t at = 0; at < size;) {
      if (++headers > kMostHeaders) {
        return Fail(Code::kUnsupported, "tar archive of more than {} headers", kMostHeaders);
      }
      const std::string what = fmt::format("tar header at offset {:#x}", at);
      std::array<std::byte, kTarBlock> block;
      if (size - at < block.size()) return Fail(Code::kCorrupt, "{} is cut short", what);
      TRY_AS(what, store_.Read(at, Bytes(block)));
      auto header = TRY_AS(what, ParseTarHeader(block));
      if (!header) break;
      // An extended header may say a size that the octal field has no room for.
      if (IsFile(header->type) && next_.size) header->size = *next_.size;
      const Range data{at + kTarBlock, header->size};
      if (!FitsIn(data.offset, data.length, size)) {
        return Fail(Code::kCorrupt, "{}: the {} bytes of '{}' reach past the end (size {:#x})",
                    what, data.length, Printable(header->name), size);
      }
      TRY_AS(what, Take(std::move(*header), data));
      at = std::min(RoundUp(data.end(), kTarBlock), size);
    }
    return std::move(members_);
  }

 private:
  static bool IsFile(char type) { return type == '0' || type == '\0' || type == '7'; }

  Result<> Take(TarHeader header, Range data) {
    if (header.type == 'L' || header.type == 'x') return TakeExtension(header.type, data);
    if (header.type == 'K' || header.type == 'g') return {};
    PaxRecords pax = std::exchange(next_, {});
    if (header.type == 'S' || pax.sparse) {
      return Fail(Code::kUnsupported, "'{}' is a sparse member", Printable(header.name));
    }
    if (!IsFile(header.type)) return {};
    if (members_.size() == kMostMembers) {
      return Fail(Code::kUnsupported, "more than {} members", kMostMembers);
    }
    members_.push_back({pax.path ? std::move(*pax.path) : std::move(header.name), data});
    return {};
  }

  Result<> TakeExtension(char type, Range data) {
    if (data.length > kMostExtension) {
      return Fail(Code::kCorrupt, "an extension of {} bytes", data.length);
    }
    std::vector<std::byte> bytes(data.length);
    TRY(store_.Read(data.offset, Bytes(bytes)));
    if (type == 'L') {
      std::string_view name = AsText(bytes);
      next_.path = name.substr(0, name.find('\0'));
    } else {
      PaxRecords records = TRY(ParsePaxRecords(bytes));
      if (records.path) next_.path = std::move(records.path);
      if (records.size) next_.size = records.size;
      next_.sparse = next_.sparse || records.sparse;
    }
    return {};
  }

  Store& store_;
  PaxRecords next_;  // what has been said of the member to come
  std::vector<TarMember> members_;
};

}  // namespace

Result<std::optional<TarHeader>> ParseTarHeader(ConstBytes bytes) {
  auto block = LoadAt<Block>(bytes, 0);
  if (!block) return Fail(Code::kCorrupt, "is cut short");
  if (IsZero(bytes.first(kTarBlock))) return std::nullopt;
  auto checksum = NumberOf({block->checksum.data(), block->checksum.size()});
  if (!checksum || !ChecksumMatches(bytes, *checksum)) {
    return Fail(Code::kCorrupt, "its checksum does not match");
  }
  auto size = NumberOf({block->size.data(), block->size.size()});
  if (!size) return Fail(Code::kCorrupt, "its size is no number");
  TarHeader header;
  header.type = block->type;
  // Links, devices and folders have no data, whatever they say.
  const bool has_data = block->type < '1' || block->type > '6';
  header.size = has_data ? *size : 0;
  const bool posix =
      std::string_view(block->magic_version.data(), 6) == std::string_view("ustar\0", 6);
  std::string_view prefix = posix ? TextOf(block->prefix) : std::string_view();
  if (!prefix.empty()) header.name = std::string(prefix) + "/";
  header.name += TextOf(block->name);
  return header;
}

// "25 path=folder/file\n": the length, of all of it, in decimal.
Result<PaxRecords> ParsePaxRecords(ConstBytes data) {
  PaxRecords records;
  std::string_view rest = AsText(data);
  while (!rest.empty()) {
    size_t length = 0;
    auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), length);
    const auto digits = static_cast<size_t>(end - rest.data());
    if (error != std::errc() || length > rest.size() || length < digits + 3 ||
        rest[digits] != ' ' || rest[length - 1] != '\n') {
      return Fail(Code::kCorrupt, "a malformed record of an extended header");
    }
    std::string_view record = rest.substr(digits + 1, length - digits - 2);
    rest.remove_prefix(length);
    const size_t equals = record.find('=');
    if (equals == record.npos) return Fail(Code::kCorrupt, "a record without a value");
    std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
    if (key == "path") {
      records.path = value;
    } else if (key == "size") {
      uint64_t size = 0;
      auto [last, wrong] = std::from_chars(value.data(), value.data() + value.size(), size);
      if (wrong != std::errc() || last != value.data() + value.size()) {
        return Fail(Code::kCorrupt, "a size that is no number");
      }
      records.size = size;
    } else if (key.starts_with("GNU.sparse.")) {
      records.sparse = true;
    }
  }
  return records;
}

Result<std::vector<TarMember>> ReadTar(Store& store) { return Walker(store).Walk(); }

}  // namespace platter
