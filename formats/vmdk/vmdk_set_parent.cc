// A descriptor is text, longer than the sector that a disk writes whole, and other programs look
// for it in one place only. So that a power cut leaves the old parent or the new one, all lines
// that change have to be in its first sector, and everything behind that stays where it is:
//
//   sector 0                                     | sector 1 ...
//   CID=.. parentCID=.. hint=".." .. ddb.geometr | y.heads = "16" .. NUL
//   CID=.. parentCID=.. longer hint=".." .. #    | y.heads = "16" .. ddb.adapterType = .. NUL
//
// The line that the border cuts is repeated whole in front of it, and what remains of it behind the
// border becomes a comment. What no longer fits (comments, then entries of the disk data base,
// which may stand anywhere) is first appended to the text, where for a moment it says the same a
// second time. What becomes shorter is filled with empty lines.
#include "formats/vmdk/vmdk_set_parent.h"

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include "formats/vmdk/vmdk_layer.h"
#include "formats/vmdk/vmdk_plan.h"

namespace platter::vmdk {
namespace {

std::string LowerKey(std::string_view line) {
  std::string key;
  for (char c : line.substr(0, line.find('='))) {
    if (!std::isspace(static_cast<unsigned char>(c))) {
      key += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  return key;
}

bool IsComment(std::string_view line) {
  size_t first = line.find_first_not_of(" \t\r");
  return first == line.npos || line[first] == '#';
}

// The first sector of a descriptor's text, as lines.
class FirstSector {
 public:
  // `text` does not end inside the sector, or is all of it.
  explicit FirstSector(std::string_view text) {
    size_t at = 0;
    while (at < std::min<size_t>(text.size(), kSector)) {
      size_t end = text.find('\n', at);
      end = end == text.npos ? text.size() : end + 1;
      lines_.emplace_back(text.substr(at, end - at));
      if (!lines_.back().ends_with('\n')) lines_.back() += '\n';
      at = end;
    }
    cut_ = at > kSector && text.size() > kSector;
  }

  // kUnsupported where the lines that change are not in it.
  Result<> NameParent(uint32_t cid, const std::string& hint) {
    const std::string ending = lines_.front().ends_with("\r\n") ? "\r\n" : "\n";
    auto is = [](const std::string& line, std::string_view key) { return LowerKey(line) == key; };
    std::erase_if(lines_, [&](const auto& line) { return is(line, "parentfilenamehint"); });
    auto place =
        std::ranges::find_if(lines_, [&](const auto& line) { return is(line, "parentcid"); });
    if (place == lines_.end()) {
      return Fail(Code::kUnsupported, "descriptor: parentCID is not in its first sector");
    }
    *place = fmt::format("parentCID={:08x}{}", cid, ending);
    if (hint.empty()) return {};
    // Behind createType, where programs put it.
    for (auto at = place; at != lines_.end(); ++at) {
      if (is(*at, "createtype")) place = at;
    }
    lines_.insert(place + 1, fmt::format("parentFileNameHint=\"{}\"{}", hint, ending));
    return {};
  }

  // Takes out what has to go so that the rest fits, and returns what of it must stay in the text.
  Result<std::string> MakeRoom() {
    std::string moved;
    for (size_t i = lines_.size(); i-- > 1 && used() > kSector;) {
      if (IsComment(lines_[i])) lines_.erase(lines_.begin() + static_cast<ptrdiff_t>(i));
    }
    for (size_t i = lines_.size(); i-- > 1 && used() > kSector;) {
      if (!LowerKey(lines_[i]).starts_with("ddb.")) continue;
      moved += lines_[i];
      lines_.erase(lines_.begin() + static_cast<ptrdiff_t>(i));
    }
    if (used() <= kSector) return moved;
    return Fail(Code::kNoSpace, "descriptor: the parent's name does not fit in its first sector");
  }

  // As bytes of the file: a whole sector.
  std::string Render() const {
    std::string bytes;
    for (const std::string& line : lines_) bytes += line;
    bytes.resize(kSector - (cut_ ? 1 : 0), '\n');
    if (cut_) bytes += '#';
    return bytes;
  }

 private:
  uint64_t used() const {
    uint64_t sum = cut_ ? 1 : 0;
    for (const std::string& line : lines_) sum += line.size();
    return sum;
  }

  std::vector<std::string> lines_;
  bool cut_ = false;  // the last line goes on behind the border
};

// Where the text is, and how long it may get.
struct Place {
  Store& file;
  Range embedded;  // empty: all of the file

  Result<> Write(uint64_t at, std::string_view bytes) const {
    TRY_AS("descriptor", file.Write(embedded.offset + at, AsBytes(bytes)));
    return file.Sync();
  }
  bool Fits(uint64_t length) const { return embedded.empty() || length <= embedded.length; }
};

// Puts `moved` behind `text`, which it becomes part of: the last sector that it reaches into first.
Result<> Append(const Place& place, std::string& text, std::string_view moved) {
  std::string added = text.ends_with('\n') ? "" : "\n";
  added += moved;
  if (!place.Fits(text.size() + added.size())) {
    return Fail(Code::kNoSpace, "descriptor: there is no room behind it");
  }
  const uint64_t start = text.size(), border = RoundUp(start + 1, kSector);
  text += added;
  if (text.size() > border) TRY(place.Write(border, std::string_view(text).substr(border)));
  const uint64_t end = std::min<uint64_t>(border, text.size());
  return place.Write(start, std::string_view(text).substr(start, end - start));
}

// A text of its own file reaches to the end of its first sector, at least.
Result<> Pad(const Place& place, std::string& text) {
  if (text.size() >= kSector || !place.Fits(kSector)) return {};
  const uint64_t start = text.size();
  text.resize(kSector, '\n');
  return place.Write(start, std::string_view(text).substr(start));
}

Result<> CheckExtents(const Descriptor& descriptor) {
  for (const ExtentLine& line : descriptor.extents) {
    if (line.sparse()) continue;
    return Fail(Code::kUnsupported,
                "extents that are not sparse hold everything and cannot have a parent");
  }
  return {};
}

}  // namespace

Result<> SetVmdkParent(Store& store, const OpenOptions& open,
                       const std::optional<Reference>& parent,
                       const std::optional<ParentFile>& file) {
  OpenOptions look = open;
  look.writable = look.info_only = true;
  VmdkLayer::Parts parts = TRY(OpenParts(store, look, /*to_check=*/true));
  if (parts.descriptor.text.empty()) {
    return Fail(Code::kUnsupported, "the image has no descriptor that could name a parent");
  }
  if (parent) TRY(CheckExtents(parts.descriptor));
  const uint32_t cid = parent ? TRY(CidOfParent(*parent, file)) : kNoParentCid;
  std::string text = parts.descriptor.text;
  const Place place{store, parts.embedded};
  TRY(Pad(place, text));
  if (text.size() < kSector) return Fail(Code::kNoSpace, "descriptor: it has no sector");
  FirstSector first(text);
  TRY(first.NameParent(cid, parent ? parent->name : std::string()));
  const std::string moved = TRY(first.MakeRoom());
  const std::string sector = first.Render();
  const std::string rest = text.size() > kSector ? text.substr(kSector) : std::string();
  auto now = TRY_AS("as it would be", ParseDescriptor(sector + rest + "\n" + moved));
  const bool named = parent ? now.parent_hint == parent->name : !now.has_parent_hint;
  if (now.parent_cid != cid || !named || now.extents.size() != parts.descriptor.extents.size()) {
    return Fail(Code::kUnsupported, "descriptor: its lines cannot be changed one by one");
  }
  if (!moved.empty()) TRY(Append(place, text, moved));
  return place.Write(0, sector);
}

}  // namespace platter::vmdk
