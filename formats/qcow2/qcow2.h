// The qcow2 format: the descriptor that formats/registry lists. See docs/formats/qcow2.md.
#pragma once

#include "formats/format.h"

namespace platter {
extern const Format kQcow2Format;
}
