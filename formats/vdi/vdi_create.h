// Creation and measuring of VDI images; see Format in formats/format.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "base/range.h"
#include "base/result.h"
#include "formats/format.h"
#include "formats/vdi/vdi_parse.h"
#include "io/store.h"

namespace platter::vdi {

inline constexpr OptionHelp kCreateOptions[] = {
    {"block_size", "bytes of a block: a power of two from 512 to 1G (1M, or the parent's)"},
    {"preallocation", "off, metadata, falloc, full; all but off make the image fixed (off)"},
    {"static", "as subformat=fixed: on, off (off)"},
    {"subformat", "dynamic, or fixed: all blocks have their place in the file (dynamic)"},
};

// Writes a new image. What a crash leaves is no image: the header is written last.
Result<> CreateVdi(Store& store, const CreateOptions& options);

// VDI knows a parent by its ids, which only the parent itself can tell.
Result<> NameParent(const std::optional<ParentFile>& file, Header& header);

Result<MeasureResult> MeasureVdi(const CreateOptions& options, uint64_t allocated_bytes,
                                 std::span<const Range> data);

}  // namespace platter::vdi
