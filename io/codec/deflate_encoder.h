// Our own deflate encoder, for levels between ISA-L's and zlib's. Private to io/codec.
#pragma once

#include <memory>

#include "io/codec/codec.h"

namespace platter::internal {

// How hard to look for matches: docs/PERFORMANCE.md has speed and size of each.
enum class Effort { kGreedy, kLazy, kThorough };

std::unique_ptr<Compressor> MakeDeflateEncoder(const Compressor::Options& options, Effort effort);

}  // namespace platter::internal
