// Adding and erasing the passphrases of a LUKS1 header that is there. As luks.h: spans in, spans
// out; the caller writes, in the order that is told.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "io/codec/luks.h"

namespace platter {

// Bytes to be written, at offsets from the header's first byte, each durable before the next.
struct LuksWrite {
  uint64_t offset;
  std::vector<std::byte> bytes;
};

// Opens the disk with `passphrase` as well. `header_bytes`: the Luks1::kHeaderBytes of the header,
// which was parsed as `header`. `slot`: which one, nothing for the first that is free. Takes about
// `iteration_ms` of CPU time. kRefused: the slot is active, or none is free. Any thread.
Result<std::vector<LuksWrite>> AddLuksSlot(const Luks1& header, ConstBytes header_bytes,
                                           const Secret& master_key, ConstBytes passphrase,
                                           std::optional<size_t> slot, uint32_t iteration_ms);

// The disk does not open by this slot any more. kRefused for the last active one, without which
// nobody could read the disk, and for one that is not active. Any thread.
Result<std::vector<LuksWrite>> EraseLuksSlot(const Luks1& header, size_t slot);

// The slots that open with `passphrase`. Errors as UnlockLuks1's, but for none.
Result<std::vector<size_t>> FindLuksSlots(const Luks1& header, ConstBytes key_area,
                                          ConstBytes passphrase);

}  // namespace platter
