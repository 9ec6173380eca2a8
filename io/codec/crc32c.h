// CRC-32C (Castagnoli), as iSCSI, ext4 and VHDX use it.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace platter {

// The checksum of `bytes`. With `so_far`, the checksum of what came before, that of both together.
uint32_t Crc32c(ConstBytes bytes, uint32_t so_far = 0);

}  // namespace platter
