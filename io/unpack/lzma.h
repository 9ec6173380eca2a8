// What the parts of io/unpack that use liblzma share. Private to io/unpack.
#pragma once

#include <lzma.h>

#include "base/result.h"
#include "io/unpack/decoder.h"

namespace platter::internal {

// A stream that ends with its owner.
class LzmaStream {
 public:
  LzmaStream() = default;
  LzmaStream(const LzmaStream&) = delete;
  LzmaStream& operator=(const LzmaStream&) = delete;
  ~LzmaStream() { lzma_end(&stream_); }
  lzma_stream* operator->() { return &stream_; }
  lzma_stream* get() { return &stream_; }

 private:
  lzma_stream stream_ = LZMA_STREAM_INIT;
};

// The error that `code`, which is none of those that mean success, stands for.
std::unexpected<Error> LzmaError(lzma_ret code);

// One call of lzma_code.
Result<Decoder::Step> LzmaStep(LzmaStream& stream, ConstBytes from, Bytes into);

// Decodes exactly one block of an xz stream: its header is first in what Decode gets. Cannot be
// restarted. `unpadded` and `check` are those of the stream's index and header.
std::unique_ptr<Decoder> MakeXzBlockDecoder(uint64_t unpadded, lzma_check check, uint64_t memory);

}  // namespace platter::internal
