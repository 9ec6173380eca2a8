// Sizes as users write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace platter {

// "512", "10G", "1.5M", "64k", "2TiB": bytes, or a number with one of the suffixes b k K M G T P E
// (powers of 1024; "iB" and "B" may follow). As qemu-img, a fraction is cut to whole bytes but
// needs a suffix. kOutOfRange for what is no such thing (a sign, a blank, hexadecimal) and for
// sizes from 2^63 on.
Result<uint64_t> ParseSize(std::string_view text);

// "4 GiB", "650 MiB", "1.37 GiB", "0 B": three significant digits, as qemu-img prints them.
std::string HumanSize(uint64_t bytes);

}  // namespace platter
