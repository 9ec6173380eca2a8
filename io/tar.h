// The members of a tar archive.
//
// Read: POSIX ustar and pax (path and size of extended headers), GNU tar (long names, sizes in base
// 256) and what came before them. Only regular files are members here; folders, links and devices
// are stepped over. Sparse members are kUnsupported: they are not in one piece.
//
// Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format"; the GNU tar
// manual, "Basic Tar Format".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "io/store.h"

namespace platter {

constexpr uint64_t kTarBlock = 512;  // bytes: of a header, and what data is padded to

struct TarHeader {
  std::string name;
  uint64_t size = 0;  // bytes of data that follow
  char type = '0';
};

// Of one block; nothing for a block of zeros, which ends the archive. kCorrupt (a checksum that
// does not match, among others).
Result<std::optional<TarHeader>> ParseTarHeader(ConstBytes block);

// What an extended header ('x') says of the member that follows.
struct PaxRecords {
  std::optional<std::string> path;
  std::optional<uint64_t> size;
  bool sparse = false;
};
Result<PaxRecords> ParsePaxRecords(ConstBytes data);

struct TarMember {
  std::string name;  // as written: print it through Printable
  Range data;
};

// All regular files, in order. kCorrupt with the offset; kUnsupported for more than 10000 members.
Result<std::vector<TarMember>> ReadTar(Store& store);

}  // namespace platter
