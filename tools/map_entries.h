// The allocation of a disk as qemu-img map shows it.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "cow/disk.h"

namespace platter {

struct MapEntry {
  Range range;           // guest bytes
  unsigned depth = 0;    // which layer of the chain answers, 0 the top
  bool present = false;  // some layer holds something here
  bool zero = false;     // reads as zeros
  bool data = false;     // bytes are stored
  bool compressed = false;
  std::optional<uint64_t> host;  // bytes into `file`; none where compressed or encrypted
  std::string file;              // made printable

  // True if `next`, which follows in the guest, continues this entry.
  bool ContinuedBy(const MapEntry& next) const;
};

// Entries in ascending order, neighbours of one kind merged. Costs by
// allocation, not by size.
Result<> ForEachMapEntry(Disk& disk, Range range,
                         const std::function<void(const MapEntry&)>& visit);

// --start-offset and --max-length of a disk of `size` bytes; empty texts mean
// all of it.
Result<Range> ParseMapRange(const std::string& start, const std::string& length, uint64_t size);

}  // namespace platter
