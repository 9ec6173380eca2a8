// The raw format: guest bytes are host bytes. See docs/formats/raw.md.
#pragma once

#include "formats/format.h"

namespace platter {
extern const Format kRawFormat;
}
