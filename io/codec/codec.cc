#include "io/codec/codec.h"

#include "io/codec/deflate.h"
#include "io/codec/zstd_codec.h"

namespace platter {

std::string_view CodecName(Codec::Id id) {
  switch (id) {
    case Codec::kNone: return "none";
    case Codec::kDeflate: return "deflate";
    case Codec::kZstd: return "zstd";
    case Codec::kZlib: return "zlib";
  }
  return "unknown";
}

Codec::Id FindCodec(std::string_view name) {
  for (Codec::Id id : {Codec::kDeflate, Codec::kZstd, Codec::kZlib}) {
    if (name == CodecName(id)) return id;
  }
  return Codec::kNone;
}

Result<std::unique_ptr<Compressor>> Compressor::Create(const Options& options) {
  if (options.level < 0 || options.level > 9) {
    return Fail(Code::kOutOfRange, "compression level {} is not in 0..9", options.level);
  }
  switch (options.id) {
    case Codec::kDeflate:
    case Codec::kZlib: return internal::MakeDeflate(options);
    case Codec::kZstd: return internal::MakeZstd(options);
    case Codec::kNone: break;
  }
  return Fail(Code::kUnsupported, "no compressor for codec '{}'", CodecName(options.id));
}

uint64_t CompressorMemory(const Compressor::Options& options, uint64_t unit) {
  if (options.id == Codec::kZstd) return internal::ZstdMemory(options, unit);
  return kMiB;  // tables, and the tokens of a block
}

Result<size_t> Decompress(Codec::Id id, ConstBytes from, Bytes into) {
  if (into.empty()) return 0;
  switch (id) {
    case Codec::kDeflate: return internal::Inflate(from, into);
    case Codec::kZstd: return internal::Unzstd(from, into);
    case Codec::kZlib: return internal::InflateZlib(from, into);
    case Codec::kNone: break;
  }
  return Fail(Code::kUnsupported, "no decompressor for codec '{}'", CodecName(id));
}

}  // namespace platter
