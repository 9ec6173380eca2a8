#include "formats/vmdk/vmdk_descriptor.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/bytes.h"
#include "base/math.h"

namespace platter::vmdk {

namespace {

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr uint64_t kMostSectors = (uint64_t{1} << 63) / kSector - 1;
// IDE disks are limited to 16383 cylinders of 16 heads; SCSI controllers' BIOSes translate.
constexpr uint64_t kMostIdeCylinders = 16383, kMostCylinders = 65535;

constexpr std::string_view kAccessNames[] = {"RW", "RDONLY", "NOACCESS"};
constexpr std::string_view kTypeNames[] = {"FLAT", "SPARSE",     "ZERO",
                                           "VMFS", "VMFSSPARSE", "SESPARSE"};

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\v' || c == '\f'; }

std::string_view Trim(std::string_view text) {
  while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
  return text;
}

bool SameWord(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  });
}

template <size_t kCount>
std::optional<size_t> IndexOf(const std::string_view (&names)[kCount], std::string_view word) {
  for (size_t i = 0; i < kCount; ++i) {
    if (SameWord(names[i], word)) return i;
  }
  return std::nullopt;
}

// The next word of `rest`, which is shortened by it.
std::string_view TakeWord(std::string_view& rest) {
  rest = Trim(rest);
  size_t end = 0;
  while (end < rest.size() && !IsSpace(rest[end])) ++end;
  std::string_view word = rest.substr(0, end);
  rest.remove_prefix(end);
  return word;
}

template <class Number>
std::optional<Number> ParseNumber(std::string_view text, int base) {
  Number value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

// `ACCESS SECTORS TYPE ["NAME" [OFFSET ...]]`; what follows the offset (of devices: "partitionUUID"
// and a name) adds nothing that we need.
Result<ExtentLine> ParseExtent(std::string_view line) {
  ExtentLine extent;
  std::string_view rest = line;
  extent.access = static_cast<ExtentLine::Access>(*IndexOf(kAccessNames, TakeWord(rest)));
  std::string_view sectors = TakeWord(rest), type = TakeWord(rest);
  auto count = ParseNumber<uint64_t>(sectors, 10);
  if (!count || *count > kMostSectors) {
    return Fail(Code::kCorrupt, "'{}' is no number of sectors", Printable(sectors, 40));
  }
  extent.sectors = *count;
  auto known = IndexOf(kTypeNames, type);
  if (!known) {
    return Fail(Code::kUnsupported, "extents of type '{}' are not supported", Printable(type, 40));
  }
  extent.type = static_cast<ExtentLine::Type>(*known);
  rest = Trim(rest);
  if (extent.type == ExtentLine::kZero) return extent;
  size_t close = rest.empty() || rest[0] != '"' ? rest.npos : rest.find('"', 1);
  if (close == rest.npos || close == 1) {
    return Fail(Code::kCorrupt, "there is no file name in quotes");
  }
  extent.name = rest.substr(1, close - 1);
  rest.remove_prefix(close + 1);
  std::string_view offset = TakeWord(rest);
  if (!extent.flat() || offset.empty()) return extent;
  auto at = ParseNumber<uint64_t>(offset, 10);
  if (!at || *at > kMostSectors || *at + extent.sectors > kMostSectors) {
    return Fail(Code::kCorrupt, "'{}' is no offset into its file", Printable(offset, 40));
  }
  extent.offset = *at;
  return extent;
}

class Parser {
 public:
  explicit Parser(std::string_view text) { d_.text = text; }

  Result<Descriptor> Run() {
    std::string_view text = d_.text;
    size_t at = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
    for (size_t number = 1; at < text.size(); ++number) {
      size_t end = std::min(text.find_first_of("\r\n", at), text.size());
      TRY_AS(fmt::format("descriptor, line {}", number), Line(text.substr(at, end - at)));
      at = end + (text.substr(end, 2) == "\r\n" ? 2 : 1);
    }
    if (d_.extents.empty()) return Fail(Code::kCorrupt, "descriptor: it names no extents");
    return std::move(d_);
  }

 private:
  Result<> Line(std::string_view line) {
    line = Trim(line);
    if (line.empty() || line[0] == '#') return {};
    std::string_view rest = line;
    std::string_view word = TakeWord(rest);
    if (IndexOf(kAccessNames, word) && !Trim(rest).starts_with('=')) {
      d_.extents.push_back(TRY(ParseExtent(line)));
      d_.extents.back().sectors_place = PlaceOf(TakeWord(rest));
      total_ += d_.extents.back().sectors;
      if (total_ <= kMostSectors) return {};
      return Fail(Code::kCorrupt, "the extents are larger than a disk can be");
    }
    size_t equals = line.find('=');
    if (equals == line.npos) return {};  // nobody knows what it says
    return Entry(Trim(line.substr(0, equals)), Trim(line.substr(equals + 1)));
  }

  Result<> Entry(std::string_view key, std::string_view value) {
    if (value.starts_with('"')) {
      size_t close = value.find('"', 1);
      if (close == value.npos) {
        return Fail(Code::kCorrupt, "the value of {} has no closing quote", Printable(key, 40));
      }
      value = value.substr(1, close - 1);
    }
    if (key.size() > 4 && SameWord(key.substr(0, 4), "ddb.")) {
      if (SameWord(key, "ddb.longContentID") && value.size() == 32) {
        d_.long_id_place = PlaceOf(value);
      }
      if (SameWord(key, "ddb.geometry.cylinders")) d_.cylinders_place = PlaceOf(value);
      d_.ddb.emplace_back(key.substr(4), value);
      return {};
    }
    if (SameWord(key, "version")) return Version(value);
    if (SameWord(key, "CID")) {
      d_.cid = TRY(Cid(key, value));
      d_.cid_place = PlaceOf(value);
    } else if (SameWord(key, "parentCID")) {
      d_.parent_cid = TRY(Cid(key, value));
    } else if (SameWord(key, "createType")) {
      d_.create_type = value;
    } else if (SameWord(key, "encoding")) {
      d_.encoding = value;
    } else if (SameWord(key, "parentFileNameHint")) {
      d_.parent_hint = value;
      d_.has_parent_hint = true;
    } else if (SameWord(key, "changeTrackPath")) {
      d_.change_track = value;
    }
    return {};
  }

  static Result<> Version(std::string_view value) {
    auto version = ParseNumber<uint32_t>(value, 10);
    if (version && *version >= 1 && *version <= 4) return {};
    return Fail(Code::kUnsupported, "version '{}' (1 to 4 are known)", Printable(value, 40));
  }

  static Result<uint32_t> Cid(std::string_view key, std::string_view value) {
    if (auto cid = ParseNumber<uint32_t>(value, 16)) return *cid;
    return Fail(Code::kCorrupt, "{} is '{}', not eight hexadecimal digits", Printable(key, 40),
                Printable(value, 40));
  }

  // `value` is part of the text.
  Range PlaceOf(std::string_view value) const {
    return {static_cast<uint64_t>(value.data() - d_.text.data()), value.size()};
  }

  Descriptor d_;
  uint64_t total_ = 0;  // sectors
};

std::string FormatExtent(const ExtentLine& extent) {
  std::string line =
      fmt::format("{} {} {}", AccessName(extent.access), extent.sectors, TypeName(extent.type));
  if (extent.type != ExtentLine::kZero) line += fmt::format(" \"{}\"", extent.name);
  if (extent.type == ExtentLine::kFlat) line += fmt::format(" {}", extent.offset);
  return line;
}

}  // namespace

std::string_view AccessName(ExtentLine::Access access) { return kAccessNames[access]; }
std::string_view TypeName(ExtentLine::Type type) { return kTypeNames[type]; }

uint64_t Descriptor::sectors() const {
  uint64_t total = 0;
  for (const ExtentLine& extent : extents) total += extent.sectors;
  return total;
}

std::string_view Descriptor::Ddb(std::string_view key) const {
  for (const auto& [name, value] : ddb) {
    if (SameWord(name, key)) return value;
  }
  return {};
}

Result<Descriptor> ParseDescriptor(std::string_view text) {
  return Parser(text.substr(0, text.find('\0'))).Run();
}

std::string WithCid(const Descriptor& descriptor, uint32_t cid) {
  std::string text = descriptor.text, digits = fmt::format("{:08x}", cid);
  if (!descriptor.cid_place) return text;
  // The later one first: replacing the CID may move what follows.
  auto replace_long = [&] {
    if (descriptor.long_id_place) text.replace(descriptor.long_id_place->offset + 24, 8, digits);
  };
  const Range place = *descriptor.cid_place;
  bool long_later = descriptor.long_id_place && descriptor.long_id_place->offset > place.offset;
  if (long_later) replace_long();
  text.replace(place.offset, place.length, digits);
  if (!long_later) replace_long();
  return text;
}

std::string WithLastExtent(const Descriptor& descriptor, uint64_t sectors) {
  std::string text = descriptor.text;
  const Range place = descriptor.extents.back().sectors_place;
  auto replace_sectors = [&] { text.replace(place.offset, place.length, std::to_string(sectors)); };
  auto heads = ParseNumber<uint64_t>(descriptor.Ddb("geometry.heads"), 10);
  auto track = ParseNumber<uint64_t>(descriptor.Ddb("geometry.sectors"), 10);
  const bool known = heads && track && *heads - 1 < 255 && *track - 1 < 63;
  if (!known || !descriptor.cylinders_place) {
    replace_sectors();
    return text;
  }
  const uint64_t total = descriptor.sectors() - descriptor.extents.back().sectors + sectors;
  const uint64_t most = *heads <= 16 ? kMostIdeCylinders : kMostCylinders;
  const Range cylinders = *descriptor.cylinders_place;
  // The later one first: replacing the other may move it.
  if (cylinders.offset < place.offset) replace_sectors();
  text.replace(cylinders.offset, cylinders.length,
               std::to_string(std::min(total / (*heads * *track), most)));
  if (cylinders.offset > place.offset) replace_sectors();
  return text;
}

Result<std::string> WithLastExtentInPlace(const Descriptor& descriptor, uint64_t sectors) {
  std::string text = descriptor.text;
  const Range place = descriptor.extents.back().sectors_place;
  const Range sector = Range{place.offset, 1}.Outward(kSector);
  std::string digits = std::to_string(sectors);
  // The digits with the blanks behind them, of which one has to stay.
  size_t end = place.end();
  while (end + 1 < text.size() && text[end + 1] == ' ') ++end;
  digits.resize(std::max<size_t>(digits.size(), end - place.offset), ' ');
  size_t missing = digits.size() - (end - place.offset);
  size_t comment_end = 0;
  for (size_t at = 0; missing > 0 && at < text.size();) {
    const size_t stop = std::min(text.find_first_of("\r\n", at), text.size());
    // The first line is by what the file is known.
    const bool here = at > 0 && at >= sector.offset && stop <= sector.end();
    if (here && text[at] == '#' && stop - at > missing) {
      comment_end = stop;
      break;
    }
    at = stop + 1;
  }
  if ((missing > 0 && comment_end == 0) || end + missing > sector.end()) {
    return Fail(Code::kUnsupported,
                "the descriptor has no room to change its size in one step: convert the image");
  }
  // The later one first, again.
  if (missing > 0 && comment_end > end) text.erase(comment_end - missing, missing);
  text.replace(place.offset, end - place.offset, digits);
  if (missing > 0 && comment_end < place.offset) text.erase(comment_end - missing, missing);
  return text;
}

Geometry GeometryFor(std::string_view adapter_type, uint64_t sectors) {
  if (adapter_type == "ide") return {std::min(sectors / (16 * 63), kMostIdeCylinders), 16, 63};
  return {std::min(sectors / (255 * 63), kMostCylinders), 255, 63};
}

std::string BuildDescriptor(const NewDescriptor& what) {
  std::string text = "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\n";
  text += fmt::format("CID={:08x}\nparentCID={:08x}\n", what.cid, what.parent_cid);
  text += fmt::format("createType=\"{}\"\n", what.create_type);
  if (!what.parent_hint.empty()) {
    text += fmt::format("parentFileNameHint=\"{}\"\n", what.parent_hint);
  }
  text += "\n# Extent description\n";
  uint64_t sectors = 0;
  for (const ExtentLine& extent : what.extents) {
    text += FormatExtent(extent) + "\n";
    sectors += extent.sectors;
  }
  Geometry geometry = GeometryFor(what.adapter_type, sectors);
  text += "\n# The Disk Data Base\n#DDB\n\n";
  auto ddb = [&](std::string_view key, const auto& value) {
    text += fmt::format("ddb.{} = \"{}\"\n", key, value);
  };
  ddb("adapterType", what.adapter_type);
  ddb("encoding", "UTF-8");
  ddb("geometry.cylinders", geometry.cylinders);
  ddb("geometry.heads", geometry.heads);
  ddb("geometry.sectors", geometry.sectors);
  ddb("longContentID", what.long_id);
  ddb("toolsInstallType", "4");
  ddb("toolsVersion", what.tools_version);
  ddb("uuid", what.uuid);
  ddb("virtualHWVersion", what.hardware_version);
  return text;
}

}  // namespace platter::vmdk
