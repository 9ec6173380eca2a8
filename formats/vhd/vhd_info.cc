#include "formats/vhd/vhd_info.h"

#include <ctime>

namespace platter::vhd {

namespace {

std::string TimeText(uint32_t timestamp) {
  std::time_t when = kEpoch + static_cast<std::time_t>(timestamp);
  std::tm utc{};
  gmtime_r(&when, &utc);
  char text[32];
  return std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc) > 0 ? text : "";
}

// Four bytes without the NULs that pad them.
std::string Trimmed(std::string text) {
  while (!text.empty() && text.back() == '\0') text.pop_back();
  return text;
}

std::string SizeText(const Footer& footer, SizeChoice size) {
  if (size.from_geometry) {
    return fmt::format("geometry ({} bytes; current size {})", size.bytes, footer.current_size);
  }
  return "current size";
}

}  // namespace

Info MakeInfo(const Footer& footer, SizeChoice size) {
  static constexpr std::string_view kSubformats[] = {"fixed", "dynamic", "differencing"};
  const Geometry& geometry = footer.geometry;
  Info info;
  info.format = "vpc";
  info.size = size.bytes;
  if (!IsNil(footer.id)) info.identity.id = IdText(footer.id);
  info.facts = {
      {"subformat", std::string(kSubformats[static_cast<uint32_t>(footer.type) - 2])},
      {"unique-id", IdText(footer.id)},
      {"creator", Trimmed(footer.creator)},
      {"creator-version",
       fmt::format("{}.{}", footer.creator_version >> 16, footer.creator_version & 0xffff)},
      {"creator-host-os", Trimmed(footer.host_os)},
      {"created", TimeText(footer.timestamp)},
      {"size-taken-from", SizeText(footer, size)},
      {"current-size", footer.current_size},
      {"original-size", footer.original_size},
      {"geometry", fmt::format("{}/{}/{}", geometry.cylinders, geometry.heads, geometry.sectors)},
  };
  if (footer.temporary()) info.facts.push_back({"temporary", true});
  if (footer.saved_state != 0) info.facts.push_back({"saved-state", true});
  return info;
}

void AddDynamicInfo(Info& info, const Image& image, const std::optional<Reference>& parent) {
  info.unit = image.header.block_size;
  info.new_units_zero = !parent;
  Facts& facts = info.facts;
  facts.push_back({"block-size", uint64_t{image.header.block_size}});
  facts.push_back({"table-entries", uint64_t{image.header.table_entries}});
  if (!image.tail) {
    info.dirty = true;
    facts.push_back({"footer", std::string("the copy at the start; the one at the end is damaged "
                                           "or missing")});
  } else if (!image.copy_good) {
    facts.push_back({"footer", std::string("the one at the end; its copy at the start is damaged "
                                           "or differs")});
  }
  if (!image.batmap.empty()) {
    facts.push_back({"batmap", std::string(image.batmap_good ? "good" : "wrong checksum")});
  }
  if (!parent) return;
  info.references.push_back(*parent);
  facts.push_back({"parent-id", IdText(image.header.parent_id)});
  facts.push_back({"parent-modified", TimeText(image.header.parent_timestamp)});
  facts.push_back({"parent-paths", parent->paths});
}

}  // namespace platter::vhd
