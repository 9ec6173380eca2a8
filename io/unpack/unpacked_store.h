// The content of a compressed file as a store, for reading.
#pragma once

#include <cstdint>
#include <memory>

#include "io/store.h"
#include "io/unpack/decoder.h"

namespace platter {

struct UnpackLimits {
  // Of the content, bytes: more is refused. Without `given`, so is content of more than kFreeBytes
  // that is longer than kMostRatio times the packed file: a bomb, or a disk that is almost empty.
  uint64_t most = 64 * kGiB;
  bool given = false;  // the user asked for `most`
  // For info, which needs little and should not take long: unpacking from the start ends after
  // kBriefBytes, or after kBriefSeconds if more can be done in them. Void with `given`.
  bool brief = false;
  uint64_t memory = kMemory;  // of decoders, bytes

  static constexpr uint64_t kFreeBytes = kGiB;
  static constexpr uint64_t kMostRatio = 200;  // gzip packs zeros 229 (-1) to 1030 times
  static constexpr uint64_t kBriefBytes = 64 * kMiB;
  static constexpr int kBriefSeconds = 2;
  static constexpr uint64_t kMemory = 136 * kMiB;  // a window of 128 MiB and what goes with it
};

// `packed`, unpacked. Content goes into an unlinked temporary file (TMPDIR, default /var/tmp), in
// which zeros are holes, and each byte is unpacked at most once: whole blocks where the file has an
// index (io/unpack/index.h), on demand and in several threads at once; else from the start to what
// is asked for, and Size() then unpacks everything, unless the file says how long it is.
//
// Errors of Size, Read and FindRun: kCorrupt with the offset in the packed file; kRefused where a
// limit is reached, naming --unpack-limit; kUnsupported (needs more memory); kNoSpace. Bytes are
// handed out before the checksum over all of them could be verified only while more follow: what
// reaches the end has been verified to the end.
//
// Memory: limits.memory for decoders and about 2 MiB for each thread that unpacks.
Result<std::unique_ptr<Store>> OpenUnpacked(std::unique_ptr<Store> packed, Packing packing,
                                            const UnpackLimits& limits);

}  // namespace platter
