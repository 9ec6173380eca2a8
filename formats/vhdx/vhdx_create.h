// Creation and measuring of VHDX images; see Format in formats/format.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "base/range.h"
#include "base/result.h"
#include "formats/format.h"
#include "formats/vhdx/vhdx_parse.h"
#include "io/store.h"

namespace platter::vhdx {

// The options of `-o help`: qemu-img's names, and sector sizes.
inline constexpr OptionHelp kCreateOptions[] = {
    {"block_size", "a power of two from 1M to 256M (8M to 64M by size; 2M with a parent)"},
    {"block_state_zero", "say of empty blocks that they read as zeros: on, off (on)"},
    {"log_size", "a multiple of 1M, at most 1G (1M)"},
    {"logical_sector_size", "512, 4096 (512, or that of the parent)"},
    {"physical_sector_size", "512, 4096 (4096)"},
    {"preallocation", "off, falloc, full; all but off make the image fixed (off)"},
    {"subformat", "dynamic, or fixed: all blocks have their place in the file (dynamic)"},
};

// Writes a new image. What a crash leaves is no image: the signature is written last.
Result<> CreateVhdx(Store& store, const CreateOptions& options);

// What an image records of its parent, which has to be a VHDX that was looked at.
Result<ParentLocator> LocatorOf(const std::optional<ParentFile>& file);

Result<MeasureResult> MeasureVhdx(const CreateOptions& options, uint64_t allocated_bytes,
                                  std::span<const Range> data);

}  // namespace platter::vhdx
