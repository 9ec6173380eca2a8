// What a new image is going to be: options checked, places of everything laid out. No I/O.
#pragma once

#include <string>
#include <vector>

#include "formats/format.h"
#include "formats/vmdk/vmdk_descriptor.h"
#include "formats/vmdk/vmdk_parse.h"

namespace platter::vmdk {

enum class Subformat : uint8_t {
  kMonolithicSparse,
  kMonolithicFlat,
  kSplitSparse,
  kSplitFlat,
  kStream,
};
std::string_view SubformatName(Subformat subformat);

// 2047 MiB: below 2 GiB with all tables, as VMware's programs split.
constexpr uint64_t kSplitSectors = 4192256;
constexpr uint64_t kMostSparse = 64 * kTiB;  // bytes of guest: what fits the tables

constexpr uint64_t kNewGrain = 64 * kKiB;
constexpr uint32_t kNewTableEntries = 512;

struct ImagePlan {
  Subformat subformat = Subformat::kMonolithicSparse;
  bool zeroed_grains = false;
  bool allocate = false;  // flat extents' space
  NewDescriptor descriptor;

  bool flat() const {
    return subformat == Subformat::kMonolithicFlat || subformat == Subformat::kSplitFlat;
  }
  // The descriptor is in the one extent.
  bool embedded() const {
    return subformat == Subformat::kMonolithicSparse || subformat == Subformat::kStream;
  }
};

// kUnsupported, kOutOfRange, kRefused, naming the option.
Result<ImagePlan> PlanImage(const CreateOptions& options);

// The content id that a child records of its parent. kRefused, kUnsupported where it can have none,
// or `reference`'s name cannot be recorded.
Result<uint32_t> CidOfParent(const Reference& reference, const std::optional<ParentFile>& file);

// kUnsupported for a name that does not fit a line of text, in quotes.
Result<> CheckName(std::string_view what, std::string_view name);

// A new sparse extent for `capacity` bytes with room for a descriptor of `text` bytes (0: none).
//
//   header | descriptor | redundant directory | its tables | directory | tables | grains
//
// All tables are there from the start, one after the other. A stream has header and descriptor
// only, and grains begin at 64 KiB.
SparseGeometry LayOutSparse(const ImagePlan& plan, uint64_t capacity, uint64_t text);
SparseHeader BuildHeader(const SparseGeometry& geometry);

}  // namespace platter::vmdk
