// Compression of packed units: span to span, no I/O. Deflate is written by ISA-L at levels 1 to 3,
// by an encoder of our own at 4 to 8 and by zlib at 9, and read by ISA-L; zstd is libzstd's.
#pragma once

#include <memory>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "io/layer.h"

namespace platter {

std::string_view CodecName(Codec::Id id);  // "deflate", "zstd", "zlib"; "none"
// The codec of that name; kNone if there is none.
Codec::Id FindCodec(std::string_view name);

// A context for one codec, level and window. Not for two threads at once; make one per thread.
class Compressor {
 public:
  // `level`: 0 our default, else 1 (fast) to 9 (small) for all codecs. `window_bits` for kDeflate
  // and kZlib: 9 to 15; 0: 12 for kDeflate (qcow2: no match further back than 4 KiB), 15 for kZlib.
  struct Options {
    Codec::Id id = Codec::kDeflate;
    int level = 0;
    int window_bits = 0;
  };
  static Result<std::unique_ptr<Compressor>> Create(const Options& options);
  virtual ~Compressor() = default;

  // Compresses `from` into `into`; the number of bytes used, or 0 if it does not fit (callers give
  // less room than the input, so 0 means "not worth it").
  virtual size_t Compress(ConstBytes from, Bytes into) = 0;
};

// Bytes of memory that a Compressor of these options takes for units of `unit` bytes, at most.
uint64_t CompressorMemory(const Compressor::Options& options, uint64_t unit);

// Decompresses one unit: fills all of `into` from the stream at the start of `from`, which may be
// followed by bytes that are not its own. Returns how many bytes of `from` the stream took (for a
// stream that is longer than `into`: as many as were needed). A stream that ends early, or is not
// one, is kCorrupt. kZlib streams are read to their end, where their checksum has to be right; one
// that is far longer than `into` is kCorrupt. Memory is bounded by the codec's window, whatever the
// stream says. Any thread.
Result<size_t> Decompress(Codec::Id id, ConstBytes from, Bytes into);

}  // namespace platter
