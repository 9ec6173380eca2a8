// What qcow2 offers to change an image where it is.
#pragma once

#include "formats/in_place.h"

namespace platter {
extern const InPlace kQcow2InPlace;
}
