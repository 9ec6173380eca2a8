// Check and repair. Told: tables and grains that cannot be where they are said to be, grains that
// share space with other grains or with metadata (both owners are named), redundant tables that
// differ from the first ones, and space that nothing names.
#pragma once

#include "formats/format.h"

namespace platter::vmdk {

// See Format::check. Repairs redundant tables from the first ones (kLeaks and kAll), and first ones
// that are damaged from their redundant copies (kAll).
Result<CheckReport> CheckVmdk(Store& store, const OpenOptions& open, const CheckOptions& options);

}  // namespace platter::vmdk
