#include "formats/qcow2/qcow2_info.h"

#include <utility>

namespace platter::qcow2 {
namespace {

std::vector<Reference> References(const Header& header) {
  std::vector<Reference> references;
  if (header.has_backing) {
    references.push_back({Reference::kParent, header.backing_name, header.backing_format});
  }
  if (header.has_data_file()) {
    // The name is optional in the format; without it the file must be named from outside.
    references.push_back({Reference::kData, header.data_file_name.value_or(""), "raw"});
  }
  return references;
}

// qemu-img's ImageInfoSpecificQCow2.
Facts SpecificFacts(const Header& header) {
  bool version3 = header.version >= 3;
  Facts facts;
  facts.push_back({"compat", std::string(version3 ? "1.1" : "0.10")});
  facts.push_back(
      {"compression-type", std::string(header.compression == kCompressionZstd ? "zstd" : "zlib")});
  if (version3) facts.push_back({"lazy-refcounts", (header.compatible & kLazyRefcounts) != 0});
  facts.push_back({"refcount-bits", uint64_t{header.refcount_bits()}});
  if (header.crypt_method != kCryptNone) {
    facts.push_back(
        {"encrypt",
         Facts{{"format", std::string(header.crypt_method == kCryptLuks ? "luks" : "aes")}}});
  }
  if (header.has_data_file()) {
    if (header.data_file_name) facts.push_back({"data-file", *header.data_file_name});
    facts.push_back({"data-file-raw", header.data_file_raw()});
  }
  if (version3) {
    facts.push_back({"corrupt", (header.incompatible & kCorrupt) != 0});
    facts.push_back({"extended-l2", header.extended_l2()});
  }
  return facts;
}

}  // namespace

Result<Info> MakeInfo(const Header& header, const std::vector<Snapshot>& snapshots,
                      const std::vector<Bitmap>& bitmaps) {
  Info info;
  info.format = "qcow2";
  info.size = header.size;
  info.unit = static_cast<uint32_t>(header.cluster_size());
  info.encrypted = header.crypt_method != kCryptNone;
  info.dirty = header.incompatible & kDirty;
  info.corrupt = header.incompatible & kCorrupt;
  // Compressed clusters have a place neither in a data file nor under encryption.
  if (!header.has_data_file() && !info.encrypted) {
    info.compressed_units = true;
    info.compression = header.compression == kCompressionZstd ? "zstd" : "deflate";
  }
  info.references = References(header);
  for (const Snapshot& snapshot : snapshots) info.snapshots.push_back(snapshot.info);
  for (const Bitmap& bitmap : bitmaps) info.bitmaps.push_back(bitmap.info);
  info.facts = SpecificFacts(header);
  return info;
}

}  // namespace platter::qcow2
