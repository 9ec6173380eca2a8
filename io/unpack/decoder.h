// Decoders of compressed files: gzip, xz, zstd, bzip2, all behind one interface.
//
// A compressed file is a row of *members* (gzip's and bzip2's word; xz says stream, zstd frame),
// each complete in itself: `cat a.gz b.gz` unpacks to a's content and then b's. A Decoder does one
// member after another; who feeds it (io/unpack/unpacker.h) knows where one ends and where the file
// does. What a member says of itself (length, checksums) is verified by the decoder before it says
// that the member has ended.
//
// Sources: RFC 1952 (gzip), RFC 8878 (zstd), "The .xz File Format" 1.1.0; bzip2 by its library.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace platter {

enum class Packing : uint8_t { kGzip, kXz, kZstd, kBzip2 };

std::string_view PackingName(Packing packing);
// Of the name that PackingName gives.
std::optional<Packing> FindPacking(std::string_view name);

// Used by one thread at a time.
class Decoder {
 public:
  struct Step {
    size_t taken = 0;    // bytes of `from`
    size_t made = 0;     // bytes of `into`
    bool ended = false;  // the member is complete and its checksum right; `taken` is up to its end
  };

  virtual ~Decoder() = default;

  // Goes on with the member. Where neither anything is taken nor made nor ended, it wants more
  // input than `from` and `into` is not full. `into` is not empty. kCorrupt; kUnsupported for a
  // feature or a need of memory that we do not have. After an error, only Restart.
  virtual Result<Step> Decode(ConstBytes from, Bytes into) = 0;

  // Starts a new member.
  virtual Result<> Restart() = 0;
};

// A decoder that takes at most `memory` bytes of memory for its window, whatever the member asks
// for, and stands at the start of a member.
Result<std::unique_ptr<Decoder>> MakeDecoder(Packing packing, uint64_t memory);

namespace internal {
Result<std::unique_ptr<Decoder>> MakeGzipDecoder();
Result<std::unique_ptr<Decoder>> MakeXzDecoder(uint64_t memory);
Result<std::unique_ptr<Decoder>> MakeZstdDecoder(uint64_t memory);
Result<std::unique_ptr<Decoder>> MakeBzip2Decoder();

std::unexpected<Error> TooMuchMemory(uint64_t wanted, uint64_t memory);
}  // namespace internal

}  // namespace platter
