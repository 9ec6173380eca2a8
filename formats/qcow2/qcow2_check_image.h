// The image under check as bytes: its header, its size, reads that stop at the end of the file, and
// which parts of it are holes.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "formats/qcow2/qcow2_parse.h"
#include "io/store.h"

namespace platter::qcow2::check {

struct Image {
  Store& store;
  Header header;
  uint64_t size;  // bytes of the file

  uint64_t cluster_size() const { return header.cluster_size(); }
  // Clusters of the file, the last of which it may hold only in part.
  uint64_t clusters() const { return DivideUp(size, cluster_size()); }
  uint64_t Cluster(uint64_t offset) const { return offset >> header.cluster_bits; }
  uint64_t Offset(uint64_t cluster) const { return cluster << header.cluster_bits; }

  // True if the range ends a cluster or more behind the end of the file. Less is no damage: a file
  // may end where its last cluster's content does, and what is missing reads as zeros.
  bool PastEnd(Range range) const;

  // Fills `into` from `at`; what lies past the end of the file reads as zeros.
  Result<> Read(uint64_t at, Bytes into) const;
};

// Reads and parses the header. kCorrupt and kUnsupported as ParseHeader.
Result<Image> LoadImage(Store& store);

// Answers "is there anything but a hole here?" for ascending ranges with few calls to the store, so
// that walking the tables of a sparse image costs what is allocated of them. One thread each.
class Holes {
 public:
  explicit Holes(const Image& image) : image_(image) {}
  // True if all of the range is a hole or past the end of the file: it reads as zeros.
  bool Covers(Range range);

 private:
  const Image& image_;
  Range run_;  // the last answer
  bool hole_ = false;
};

// Reads a range (clipped to the file) in pieces of at most `piece` bytes, a multiple of 8, and
// skips those that are holes.
Result<> ReadPieces(const Image& image, Range range, size_t piece,
                    const std::function<void(uint64_t at, ConstBytes bytes)>& visit);

// Splits overlapping ranges into segments that are covered by the same ones throughout, so that
// tens of thousands of tables that a hostile image lays over the same bytes are read once. Calls
// `visit(segment, covering)` in ascending order; `covering` holds the indices of the ranges.
void Sweep(std::span<const Range> ranges,
           const std::function<void(Range segment, const std::set<uint32_t>& covering)>& visit);

}  // namespace platter::qcow2::check
