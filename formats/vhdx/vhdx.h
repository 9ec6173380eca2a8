// The VHDX format: the descriptor that formats/registry lists. See docs/formats/vhdx.md.
#pragma once

#include "formats/format.h"

namespace platter {
extern const Format kVhdxFormat;
}
