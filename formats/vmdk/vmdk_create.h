// New VMDK images, and how large they would be.
#pragma once

#include <span>

#include "formats/format.h"

namespace platter::vmdk {

inline constexpr OptionHelp kCreateOptions[] = {
    {"subformat",
     "monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat or "
     "streamOptimized"},
    {"adapter_type", "ide (default), buslogic, lsilogic or legacyESX"},
    {"hwversion", "virtual hardware version (default 4)"},
    {"compat6", "on: hardware version 6"},
    {"toolsversion", "version of VMware Tools to record (default 2147483647: unknown)"},
    {"zeroed_grain", "on: zeros can be told from nothing, as overlays need it"},
    {"preallocation", "off (default) or falloc: of flat extents"},
};

// See Format::create and Format::measure.
Result<> CreateVmdk(Store& store, const CreateOptions& options);
Result<MeasureResult> MeasureVmdk(const CreateOptions& options, uint64_t allocated_bytes,
                                  std::span<const Range> data);

}  // namespace platter::vmdk
