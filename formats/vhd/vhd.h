// VHD ("vpc"): fixed, dynamic and differencing disks of Virtual PC, Hyper-V, Azure and Xen.
#pragma once

#include "formats/format.h"

namespace platter {
extern const Format kVhdFormat;
}
