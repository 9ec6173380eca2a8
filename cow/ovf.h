// What an OVF descriptor says of its disks, and what a manifest says of its files. Parsers only:
// from text to values, without I/O.
//
// Source: DMTF DSP0243, Open Virtualization Format Specification 2.1: what it says of the manifest,
// of file references, of the DiskSection and of programmatic units. OVF 0.9 and 1.x have the same
// elements.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/codec/hash.h"

namespace platter {

// References/File.
struct OvfFile {
  std::string id, href;
  std::string compression;            // "gzip"; empty: none
  bool chunked = false;               // in pieces with numbers behind their names
  std::optional<uint64_t> size = {};  // bytes of the file, or of all pieces; absent: not said
};

// DiskSection/Disk.
struct OvfDisk {
  std::string id;
  std::string file_ref;              // an OvfFile::id; empty: a disk that starts empty
  std::string parent_ref;            // an OvfDisk::id: this one holds only what differs
  std::optional<uint64_t> capacity;  // bytes; absent where it is not a plain number
};

struct Ovf {
  std::vector<OvfFile> files;
  std::vector<OvfDisk> disks;

  // Null where there is none.
  const OvfFile* FindFile(std::string_view id) const;
};

// kCorrupt, kUnsupported; an OVF without disks is valid.
Result<Ovf> ParseOvf(std::string_view document);

struct ManifestEntry {
  std::string name;
  HashKind kind = HashKind::kSha256;
  std::string digest;  // hexadecimal, lower case
};

// Lines of "SHA256(name)= digest". kCorrupt and kUnsupported (other digests) name the line.
Result<std::vector<ManifestEntry>> ParseManifest(std::string_view text);

}  // namespace platter
