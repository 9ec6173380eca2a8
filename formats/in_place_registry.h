// Which formats have an InPlace.
#pragma once

#include "formats/in_place.h"

namespace platter {

// Null where the format has none.
const InPlace* FindInPlace(const Format& format);

}  // namespace platter
