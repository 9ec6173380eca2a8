#include "formats/vdi/vdi_info.h"

#include <utility>

namespace platter::vdi {
namespace {

Facts GeometryFacts(const Geometry& geometry) {
  return {{"cylinders", uint64_t{geometry.cylinders}},
          {"heads", uint64_t{geometry.heads}},
          {"sectors", uint64_t{geometry.sectors}},
          {"sector-size", uint64_t{geometry.sector_size}}};
}

void AddText(Facts& facts, std::string name, std::string_view text) {
  while (text.ends_with('\n') || text.ends_with(' ')) text.remove_suffix(1);
  if (!text.empty()) facts.push_back({std::move(name), std::string(text)});
}

Facts MakeFacts(const Header& header) {
  Facts facts;
  facts.push_back({"subformat", std::string(TypeName(header.type))});
  facts.push_back({"version", fmt::format("{}.{}", header.major, header.minor)});
  AddText(facts, "creator", header.creator);
  AddText(facts, "comment", header.comment);
  AddText(facts, "uuid", IdOrNothing(header.id));
  AddText(facts, "modification-uuid", IdOrNothing(header.modification));
  AddText(facts, "parent-uuid", IdOrNothing(header.parent_id));
  AddText(facts, "parent-modification-uuid", IdOrNothing(header.parent_modification));
  if (header.flags != 0) facts.push_back({"flags", uint64_t{header.flags}});
  facts.push_back({"blocks", uint64_t{header.blocks}});
  facts.push_back({"blocks-allocated", uint64_t{header.allocated}});
  if (header.block_extra != 0) facts.push_back({"block-extra", uint64_t{header.block_extra}});
  facts.push_back({"map-offset", header.map_offset});
  facts.push_back({"data-offset", header.data_offset});
  facts.push_back({"geometry", GeometryFacts(header.geometry)});
  if (header.has_logical_geometry) {
    facts.push_back({"logical-geometry", GeometryFacts(header.logical_geometry)});
  }
  return facts;
}

}  // namespace

std::string IdOrNothing(const ImageId& id) { return IsNil(id) ? std::string() : GuidText(id); }

Info MakeInfo(const Header& header) {
  Info info;
  info.format = "vdi";
  info.size = header.size;
  info.unit = header.block_size;
  info.new_units_zero = !header.differencing();
  info.identity = {IdOrNothing(header.id), IdOrNothing(header.modification)};
  if (header.differencing()) {
    Reference parent;
    parent.format = "vdi";
    parent.id = IdOrNothing(header.parent_id);
    if (!IsNil(header.parent_modification)) {
      parent.versions.push_back(GuidText(header.parent_modification));
    }
    info.references.push_back(std::move(parent));
  }
  info.facts = MakeFacts(header);
  return info;
}

}  // namespace platter::vdi
