// Deflate both ways. Private to io/codec: callers use codec.h.
#pragma once

#include <memory>

#include "io/codec/codec.h"

namespace platter::internal {

// For Codec::kDeflate and Codec::kZlib.
Result<std::unique_ptr<Compressor>> MakeDeflate(const Compressor::Options& options);

// As Decompress for Codec::kDeflate and Codec::kZlib.
Result<size_t> Inflate(ConstBytes from, Bytes into);
Result<size_t> InflateZlib(ConstBytes from, Bytes into);

}  // namespace platter::internal
