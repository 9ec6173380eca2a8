// zstd both ways. Private to io/codec: callers use codec.h.
#pragma once

#include <memory>

#include "io/codec/codec.h"

namespace platter::internal {

Result<std::unique_ptr<Compressor>> MakeZstd(const Compressor::Options& options);

// As CompressorMemory for Codec::kZstd.
uint64_t ZstdMemory(const Compressor::Options& options, uint64_t unit);

// As Decompress for Codec::kZstd.
Result<size_t> Unzstd(ConstBytes from, Bytes into);

}  // namespace platter::internal
