#include "formats/vmdk/vmdk_info.h"

#include <algorithm>

#include "base/bytes.h"
#include "formats/foreign_names.h"
#include "formats/vmdk/vmdk_text.h"

namespace platter::vmdk {

namespace {

// In messages and facts; a hostile descriptor may have very many.
constexpr size_t kMostExtentsTold = 1000;

std::string Encoding(const Descriptor& descriptor) {
  return descriptor.encoding.empty() ? std::string(descriptor.Ddb("encoding"))
                                     : descriptor.encoding;
}

Facts SparseFacts(const SparseGeometry& g) {
  static constexpr std::string_view kKinds[] = {"hosted", "vmfsSparse", "seSparse"};
  Facts facts;
  facts.push_back({"kind", std::string(kKinds[static_cast<size_t>(g.kind)])});
  facts.push_back({"version", uint64_t{g.version}});
  facts.push_back({"grain-size", g.grain});
  facts.push_back({"redundant-tables", g.redundant.has_value()});
  facts.push_back({"zeroed-grains", (g.flags & kZeroedGrains) != 0});
  facts.push_back({"compressed", g.compressed()});
  facts.push_back({"markers", g.markers()});
  facts.push_back({"unclean-shutdown", g.unclean});
  return facts;
}

// qemu-img's VmdkExtentInfo, and what it leaves out.
Facts ExtentFacts(const Descriptor& d, const SparseGeometry* sparse) {
  Facts extents;
  for (const ExtentLine& line : d.extents) {
    if (extents.size() == kMostExtentsTold) break;
    Facts facts = {{"virtual-size", line.sectors * kSector}};
    if (!line.name.empty()) facts.push_back({"filename", Printable(line.name)});
    if (line.sparse() && sparse) facts.push_back({"cluster-size", sparse->grain});
    facts.push_back({"format", std::string(TypeName(line.type))});
    facts.push_back({"access", std::string(AccessName(line.access))});
    if (line.flat()) facts.push_back({"offset", line.offset * kSector});
    extents.push_back({fmt::format("[{}]", extents.size()), std::move(facts)});
  }
  return extents;
}

}  // namespace

std::string CidText(uint32_t cid) { return fmt::format("{:08x}", cid); }

Reference MakeReference(const Descriptor& descriptor, Reference::Role role, const std::string& name,
                        bool beside) {
  Reference reference;
  reference.role = role;
  reference.name = name;
  auto add = [&](const std::string& path) {
    if (!path.empty() && std::ranges::count(reference.paths, path) == 0) {
      reference.paths.push_back(path);
    }
  };
  auto text = ToUtf8(name, Encoding(descriptor));
  add(name);
  if (text) add(*text);
  const std::string& readable = text ? *text : name;
  if (readable.find('\\') != readable.npos) {
    if (auto path = FromWindowsPath(readable)) add(*path);
  }
  if (beside) add(std::string(ForeignFileName(readable)));
  return reference;
}

Info MakeInfo(const Descriptor& d, const SparseGeometry* sparse) {
  Info info;
  info.format = "vmdk";
  info.size = d.sectors() * kSector;
  if (d.cid) info.identity.version = CidText(*d.cid);
  if (d.has_parent()) {
    Reference parent = MakeReference(d, Reference::kParent, d.parent_hint, true);
    parent.format = "vmdk";
    parent.versions = {CidText(d.parent_cid)};
    info.references.push_back(std::move(parent));
  }
  info.facts.push_back({"cid", uint64_t{d.cid.value_or(0)}});
  info.facts.push_back({"parent-cid", uint64_t{d.parent_cid}});
  info.facts.push_back({"create-type", Printable(d.create_type)});
  info.facts.push_back({"extents", ExtentFacts(d, sparse)});
  if (sparse) info.facts.push_back({"sparse", SparseFacts(*sparse)});
  if (d.has_parent_hint) info.facts.push_back({"parent-file-name-hint", Printable(d.parent_hint)});
  if (!d.change_track.empty()) {
    info.facts.push_back({"change-track-path", Printable(d.change_track)});
  }
  if (!d.encoding.empty()) info.facts.push_back({"encoding", Printable(d.encoding)});
  Facts ddb;
  for (const auto& [key, value] : d.ddb) {
    if (ddb.size() < kMostExtentsTold) ddb.push_back({Printable(key), Printable(value)});
  }
  if (!ddb.empty()) info.facts.push_back({"ddb", std::move(ddb)});
  if (sparse) {
    info.unit = static_cast<uint32_t>(sparse->grain);
    info.dirty = sparse->unclean;
  }
  return info;
}

}  // namespace platter::vmdk
