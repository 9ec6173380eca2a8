#include "cow/ovf.h"

#include <algorithm>
#include <charconv>

#include "base/bytes.h"
#include "base/math.h"
#include "base/xml.h"

namespace platter {

namespace {

constexpr size_t kMostDisks = 4096;

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  size_t first = std::min(text.find_first_not_of(kSpace), text.size());
  text.remove_prefix(first);
  return text.substr(0, text.find_last_not_of(kSpace) + 1);
}

std::optional<uint64_t> ParseNumber(std::string_view text) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "byte", "byte * 2^30"; OVF 0.9 wrote "MegaBytes" and the like.
std::optional<uint64_t> UnitOf(std::string_view text) {
  text = Trim(text);
  if (text.empty() || text == "byte" || text == "bytes" || text == "Bytes") return 1;
  if (text == "KiloBytes") return kKiB;
  if (text == "MegaBytes") return kMiB;
  if (text == "GigaBytes") return kGiB;
  if (!text.starts_with("byte")) return std::nullopt;
  text = Trim(text.substr(4));
  if (!text.starts_with('*')) return std::nullopt;
  text = Trim(text.substr(1));
  const size_t power = text.find('^');
  auto base = ParseNumber(Trim(text.substr(0, power)));
  if (!base || power == text.npos) return base;
  auto exponent = ParseNumber(Trim(text.substr(power + 1)));
  if (!exponent || *exponent > 63) return std::nullopt;
  std::optional<uint64_t> unit = 1;
  for (uint64_t i = 0; i < *exponent && unit; ++i) unit = CheckedMultiply(*unit, *base);
  return unit;
}

std::optional<uint64_t> CapacityOf(const XmlReader& disk) {
  auto count = ParseNumber(Trim(disk.Attribute("capacity")));
  auto unit = UnitOf(disk.Attribute("capacityAllocationUnits"));
  if (!count || !unit) return std::nullopt;
  return CheckedMultiply(*count, *unit);
}

Result<> TakeElement(const XmlReader& element, Ovf& ovf) {
  if (element.name() == "File" && !element.Attribute("href").empty()) {
    std::string_view compression = element.Attribute("compression");
    ovf.files.push_back({.id = std::string(element.Attribute("id")),
                         .href = std::string(element.Attribute("href")),
                         .compression = std::string(compression == "identity" ? "" : compression),
                         .chunked = !element.Attribute("chunkSize").empty(),
                         .size = ParseNumber(Trim(element.Attribute("size")))});
  } else if (element.name() == "Disk" && !element.Attribute("diskId").empty()) {
    ovf.disks.push_back({.id = std::string(element.Attribute("diskId")),
                         .file_ref = std::string(element.Attribute("fileRef")),
                         .parent_ref = std::string(element.Attribute("parentRef")),
                         .capacity = CapacityOf(element)});
  }
  if (ovf.files.size() > kMostDisks || ovf.disks.size() > kMostDisks) {
    return Fail(Code::kUnsupported, "more than {} files or disks", kMostDisks);
  }
  return {};
}

bool IsHex(std::string_view text) {
  return std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// "SHA256(name)= digest", with spaces here and there.
Result<ManifestEntry> ParseManifestLine(std::string_view line) {
  const size_t open = line.find('('), close = line.rfind(')');
  if (open == line.npos || close == line.npos || close < open) {
    return Fail(Code::kCorrupt, "is not 'ALGORITHM(file)= digest'");
  }
  std::string_view algorithm = Trim(line.substr(0, open)), rest = Trim(line.substr(close + 1));
  auto kind = FindHash(algorithm);
  if (!kind) {
    return Fail(Code::kUnsupported, "a digest of kind '{}' is not known", Printable(algorithm));
  }
  if (!rest.starts_with('=')) return Fail(Code::kCorrupt, "is not 'ALGORITHM(file)= digest'");
  ManifestEntry entry{.name = std::string(line.substr(open + 1, close - open - 1)),
                      .kind = *kind,
                      .digest = std::string(Trim(rest.substr(1)))};
  std::ranges::transform(entry.digest, entry.digest.begin(), [](char c) {
    return c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  constexpr size_t kDigits[] = {40, 64, 128};
  if (entry.digest.size() != kDigits[static_cast<size_t>(*kind)] || !IsHex(entry.digest)) {
    return Fail(Code::kCorrupt, "what stands behind '=' is no {} digest", HashName(*kind));
  }
  return entry;
}

}  // namespace

const OvfFile* Ovf::FindFile(std::string_view id) const {
  auto found = std::ranges::find(files, id, &OvfFile::id);
  return found == files.end() ? nullptr : &*found;
}

Result<Ovf> ParseOvf(std::string_view document) {
  XmlReader reader(document);
  Ovf ovf;
  while (true) {
    switch (TRY(reader.Next())) {
      case XmlReader::Event::kStart:
        if (reader.depth() == 1 && reader.name() != "Envelope") {
          return Fail(Code::kCorrupt, "its root element is '{}', not 'Envelope'",
                      Printable(reader.name()));
        }
        TRY(TakeElement(reader, ovf));
        break;
      case XmlReader::Event::kEnd:
      case XmlReader::Event::kText: break;
      case XmlReader::Event::kDone: return ovf;
    }
  }
}

Result<std::vector<ManifestEntry>> ParseManifest(std::string_view text) {
  std::vector<ManifestEntry> entries;
  size_t number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = Trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (line.empty()) continue;
    entries.push_back(TRY_AS(fmt::format("line {}", number), ParseManifestLine(line)));
  }
  return entries;
}

}  // namespace platter
