// Partitions of a disk, from its MBR or GPT.
//
// The tables are data from a stranger: what does not fit on the disk is left out, chains are
// followed for a bounded number of steps, and a table whose checksum is wrong is none.
//
// Source: UEFI Specification 2.10, chapter 5 (GPT, and the MBR beside it); for logical partitions
// what DOS did: a chain of boot records, each naming one partition and the next record.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/range.h"
#include "base/result.h"
#include "io/layer.h"

namespace platter {

struct Partition {
  uint32_t number =
      0;             // as Linux counts: MBR 1 to 4, logical ones from 5 on; GPT entries from 1 on
  Range range;       // of the disk, bytes; never empty
  std::string type;  // MBR: two hexadecimal digits; GPT: the type's GUID
  std::string name;  // GPT: its label, raw: print it through Printable()
};

// In order of their numbers; none where there is no table. Errors are those of reading the disk.
// Any thread.
Result<std::vector<Partition>> ReadPartitions(Layer& disk);

}  // namespace platter
