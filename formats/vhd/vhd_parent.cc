#include "formats/vhd/vhd_parent.h"

#include <algorithm>
#include <climits>
#include <utility>

#include "formats/foreign_names.h"

namespace platter::vhd {
namespace {

std::string UrlOf(const std::string& relative) {
  std::string url = relative.starts_with("../") ? "file://" : "file://./";
  for (char c : relative) {
    if (c == '%' || static_cast<unsigned char>(c) <= ' ') {
      url += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    } else {
      url += c;
    }
  }
  return url;
}

// Relative paths only: they stay right when the folder moves.
std::vector<ParentRecord::Path> PathsTo(const ParentFile& parent) {
  std::vector<std::byte> windows = ToUtf16(ToWindowsPath(parent.relative), std::endian::little);
  std::string url = UrlOf(parent.relative);
  ConstBytes mac = AsBytes(std::string_view(url));
  return {{"W2ru", windows}, {"W2ku", windows}, {"MacX", {mac.begin(), mac.end()}}};
}

ImageId IdFromText(std::string_view text) {
  ImageId id{};
  size_t digits = 0;
  for (char c : text) {
    if (c == '-' || digits == 32) continue;
    auto value = static_cast<uint8_t>(c <= '9' ? c - '0' : c - 'a' + 10);
    id[digits / 2] |= static_cast<std::byte>(digits % 2 == 0 ? value << 4 : value);
    ++digits;
  }
  return id;
}

}  // namespace

Result<ParentRecord> RecordOf(const std::optional<ParentFile>& parent) {
  if (!parent) {
    return Fail(Code::kRefused,
                "a VHD records its parent's id, so the parent has to be there and be opened");
  }
  const std::string name = Printable(parent->path, PATH_MAX);
  if (parent->info.format != "vpc") {
    return Fail(Code::kUnsupported, "the parent of a VHD is a VHD, and '{}' is {}", name,
                parent->info.format);
  }
  if (parent->info.identity.id.empty()) {
    return Fail(Code::kUnsupported,
                "the parent '{}' has no id (all zeros), so no child can name it", name);
  }
  ParentRecord record;
  record.id = IdFromText(parent->info.identity.id);
  int64_t modified = std::clamp<int64_t>(parent->modified - kEpoch, 0, UINT32_MAX);
  record.modified = static_cast<uint32_t>(modified);
  record.name = ToUtf16(ForeignFileName(parent->relative), std::endian::big);
  record.name.resize(std::min(record.name.size(), sizeof(DiskHeader::parent_name) - 2));
  record.paths = PathsTo(*parent);
  for (const ParentRecord::Path& path : record.paths) {
    if (path.data.size() <= kMostLocator) continue;
    return Fail(Code::kUnsupported, "the path to the parent has {} bytes, too many",
                path.data.size());
  }
  return record;
}

uint64_t ParentRecord::bytes() const {
  uint64_t sum = 0;
  for (const Path& path : paths) sum += RoundUp(path.data.size(), kSector);
  return sum;
}

Result<> ParentRecord::Write(Store& store, uint64_t at, DiskHeader& header) const {
  auto number = [](std::byte b) { return std::to_integer<uint8_t>(b); };
  std::ranges::transform(id, header.parent_id, number);
  header.parent_timestamp = modified;
  std::ranges::fill(header.parent_name, uint8_t{0});
  std::ranges::transform(name, header.parent_name, number);
  for (DiskLocator& locator : header.locators) locator = DiskLocator{};
  for (size_t i = 0; i < paths.size(); ++i) {
    DiskLocator& locator = header.locators[i];
    paths[i].code.copy(locator.code, sizeof locator.code);
    locator.space = static_cast<uint32_t>(RoundUp(paths[i].data.size(), kSector));
    locator.length = static_cast<uint32_t>(paths[i].data.size());
    locator.offset = at;
    TRY(store.Write(at, ConstBytes(paths[i].data)));
    at += locator.space;
  }
  return {};
}

}  // namespace platter::vhd
