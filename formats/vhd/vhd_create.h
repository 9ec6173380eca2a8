// Making new VHDs.
#pragma once

#include <span>

#include "base/math.h"
#include "formats/format.h"
#include "formats/vhd/vhd_parse.h"

namespace platter::vhd {

inline constexpr OptionHelp kCreateOptions[] = {
    {"subformat", "dynamic: grows as it is written (default); fixed: all data and a footer"},
    {"force_size", "on: exactly the size asked for; off (default): as a geometry has it, at least"},
    {"block_size",
     "Bytes of a dynamic disk's block: 4K to 256M (default 2M, which all readers know)"},
    {"preallocation",
     "of a fixed disk: off: sparse; falloc: space is reserved; full: zeros are "
     "written"},
};
inline constexpr OptionHelp kOpenOptions[] = {
    {"force_size_calc", "chs: the size that the geometry says; current_size: the current size"},
};

// See Format::create and Format::measure.
Result<> CreateVhd(Store& store, const CreateOptions& options);
Result<MeasureResult> MeasureVhd(const CreateOptions& options, uint64_t allocated_bytes,
                                 std::span<const Range> data);

// Whether a VHD can have `size` bytes: whole sectors, at most 2040 GiB.
Result<> CheckSize(uint64_t size);
constexpr uint64_t kMostSize = 2040 * kGiB;

// Where size and geometry differ: names a creator from which every reader takes the current size.
void MarkExact(Footer& footer);

}  // namespace platter::vhd
