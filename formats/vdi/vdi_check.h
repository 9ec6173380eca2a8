// Check and repair of VDI images; see Format::check.
#pragma once

#include "base/result.h"
#include "formats/format.h"
#include "io/store.h"

namespace platter::vdi {

Result<CheckReport> CheckVdi(Store& store, const OpenOptions& open, const CheckOptions& options);

}  // namespace platter::vdi
