// Our own deflate encoder, for levels between ISA-L's and zlib's. Private to io/codec.
#pragma once

#include <memory>

#include "io/codec/codec.h"

namespace platter::internal {

// How hard to look for matches. On the 64 KiB units of a disk image, with a 4 KiB window, against
// zlib's level 6: kGreedy 6 times its speed and 1.05 of its size, kLazy 5.5 and 1.04, kThorough 4
// and 1.03.
enum class Effort { kGreedy, kLazy, kThorough };

std::unique_ptr<Compressor> MakeDeflateEncoder(const Compressor::Options& options, Effort effort);

}  // namespace platter::internal
