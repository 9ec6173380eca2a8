// The VDI format: the descriptor that formats/registry lists. See docs/formats/vdi.md.
#pragma once

#include "formats/format.h"

namespace platter {
extern const Format kVdiFormat;
}
