// The descriptor: the text that says what a disk consists of. A file of its own, or embedded in
// its only extent.
//
// Source: "Virtual Disk Format 5.0", section "The Descriptor File".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/range.h"
#include "base/result.h"
#include "formats/vmdk/vmdk_disk.h"

namespace platter::vmdk {

constexpr uint32_t kNoParentCid = 0xffffffff;

struct ExtentLine {
  enum Access : uint8_t { kReadWrite, kReadOnly, kNoAccess } access = kReadWrite;
  enum Type : uint8_t { kFlat, kSparse, kZero, kVmfs, kVmfsSparse, kSeSparse } type = kFlat;
  uint64_t sectors = 0;
  std::string name;     // raw bytes; empty for kZero
  uint64_t offset = 0;  // sectors into the file; flat types only
  Range sectors_place;  // where in the text the digits of `sectors` are

  bool flat() const { return type == kFlat || type == kVmfs; }
  bool sparse() const { return !flat() && type != kZero; }
};

std::string_view AccessName(ExtentLine::Access access);
std::string_view TypeName(ExtentLine::Type type);

struct Descriptor {
  std::string text;      // as read, without the padding of an embedded one
  std::string encoding;  // of names, as recorded; empty: none is
  std::optional<uint32_t> cid;
  uint32_t parent_cid = kNoParentCid;
  std::string create_type;
  std::string parent_hint;  // raw bytes
  bool has_parent_hint = false;
  std::string change_track;  // file name; empty: no change tracking
  std::vector<ExtentLine> extents;
  std::vector<std::pair<std::string, std::string>> ddb;  // without "ddb.", in order
  // Where in `text` the digits of CID, of ddb.longContentID and of ddb.geometry.cylinders are.
  std::optional<Range> cid_place, long_id_place, cylinders_place;

  bool has_parent() const { return parent_cid != kNoParentCid; }
  uint64_t sectors() const;  // of all extents; ParseDescriptor made sure that they add up
  // The value of a ddb entry; empty if there is none.
  std::string_view Ddb(std::string_view key) const;
};

// kCorrupt, naming the line, for what cannot be read.
Result<Descriptor> ParseDescriptor(std::string_view text);

// The text with another CID (and another end of longContentID, which VMware keeps equal to it).
std::string WithCid(const Descriptor& descriptor, uint32_t cid);
// The text in which the last extent has `sectors`, and the disk the geometry that goes with it.
std::string WithLastExtent(const Descriptor& descriptor, uint64_t sectors);
// As above without the geometry, and of the same length: it differs from the old text in one sector
// of its file only, so that a write of it is all or nothing. kUnsupported where that sector has
// neither blanks behind the number nor a comment that could become shorter.
Result<std::string> WithLastExtentInPlace(const Descriptor& descriptor, uint64_t sectors);

// What a new descriptor says.
struct NewDescriptor {
  std::string create_type;
  uint32_t cid = 0;
  uint32_t parent_cid = kNoParentCid;
  std::string parent_hint;
  std::vector<ExtentLine> extents;
  std::string adapter_type;
  std::string hardware_version, tools_version;
  std::string long_id;  // 32 hexadecimal digits
  std::string uuid;     // as VMware writes it: "60 00 c2 9f ..."
};
std::string BuildDescriptor(const NewDescriptor& what);

struct Geometry {
  uint64_t cylinders, heads, sectors;
};
// What controllers of `adapter_type` make of a disk of `sectors`.
Geometry GeometryFor(std::string_view adapter_type, uint64_t sectors);

}  // namespace platter::vmdk
