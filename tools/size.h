// Sizes as users write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace platter {

// "512", "10G", "1.5M", "64k", "2T": bytes with an optional suffix b k K M G T
// P E (powers of 1024; "KiB" and "GB" spellings too). qemu-img's rules: a
// fraction needs a suffix; at most 2^63 - 1.
Result<uint64_t> ParseSize(std::string_view text);

// "4 GiB", "650 MiB", "1.37 GiB", "0 B": three significant digits, as qemu-img
// prints them.
std::string HumanSize(uint64_t bytes);

}  // namespace platter
