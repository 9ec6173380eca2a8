// What a file is by its signature: disk image formats, whether we read them or not, and wrappers
// that have to be taken off before there is a disk.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "io/store.h"

namespace platter {

struct Signature {
  enum Kind : uint8_t {
    kImage,       // a disk image format
    kCompressed,  // a compressed file: decompress it
    kArchive,     // files in a file: take the one you want out
    kFilesystem,  // an ISO 9660 file system, not a disk
  };
  std::string_view name;  // as people write it: "VMDK", "gzip"
  Kind kind;
  bool at_end;  // found in the last sector, not at the start
};

// By the first bytes (`head`, at most 4096), else by the last ones (`tail`, at most 512) of a file
// of `size` bytes; null if nothing matches. The start decides before the end: everything in an
// image with a header hangs on it, while a trailer stays behind when a file is written over.
const Signature* FindSignature(ConstBytes head, ConstBytes tail, uint64_t size);

// A signature in the last bytes, whatever stands at the start.
const Signature* FindTrailer(ConstBytes tail, uint64_t size);

// What FindSignature answers for the packages that we look into.
extern const Signature kOva;  // a tar archive whose first member is an OVF description
extern const Signature kOvf;  // that description by itself

// The bytes of a store at which signatures stand.
constexpr size_t kHeadBytes = 4096;
struct Ends {
  std::vector<std::byte> head, tail;  // the first kHeadBytes and the last 512, or all there are
  uint64_t size = 0;                  // of the store, bytes
};
Result<Ends> ReadEnds(Store& store);

// True if `volume` (the 2048 bytes at kIsoVolume) is an ISO 9660 volume descriptor.
constexpr uint64_t kIsoVolume = 32768;
bool IsIsoVolume(ConstBytes volume);
extern const Signature kIso;

// True if `head` begins with a partition table that names a partition: MBR, GPT or Apple's.
bool HasPartitionTable(ConstBytes head);

}  // namespace platter
