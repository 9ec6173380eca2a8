// The VMDK format, for the registry.
#pragma once

#include "formats/format.h"

namespace platter {
extern const Format kVmdkFormat;
}  // namespace platter
