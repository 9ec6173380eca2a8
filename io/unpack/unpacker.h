// Unpacker: the content of a row of members, piece by piece.
#pragma once

#include <memory>
#include <string_view>

#include "base/range.h"
#include "io/buffer.h"
#include "io/store.h"
#include "io/unpack/decoder.h"

namespace platter {

// Used by one thread at a time.
class Unpacker {
 public:
  // Of the members in `host` of `packed`, which is borrowed. `name`: of the compression.
  Unpacker(Store& packed, Range host, std::string_view name, std::unique_ptr<Decoder> decoder);

  // Fills `into` with the next bytes of the content, or with as many as there are before its end:
  // a count less than asked for says that nothing follows, and that everything was well formed to
  // the last byte. Zero bytes after a member are padding. kCorrupt, with the offset in the packed
  // file, for everything else: data that does not decode, a checksum that does not match, an end
  // in the middle.
  Result<size_t> Next(Bytes into);

  // Packed bytes used up so far.
  uint64_t taken() const { return at_ - host_.offset; }

 private:
  Result<> Refill();
  Result<bool> FindMember();
  std::unexpected<Error> Failed(Error error) const;

  Store& packed_;
  const Range host_;
  const std::string_view name_;
  const std::unique_ptr<Decoder> decoder_;
  uint64_t at_;  // of the next packed byte to decode
  Buffer chunk_;
  ConstBytes input_;  // the part of `chunk_` that starts at `at_`
  bool in_member_ = true;
  bool ended_ = false;
};

}  // namespace platter
