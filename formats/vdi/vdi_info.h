// What a VDI header says, as Info.
#pragma once

#include "formats/vdi/vdi_parse.h"
#include "io/info.h"

namespace platter::vdi {

// "" for an id of zeros, which stands for none.
std::string IdOrNothing(const ImageId& id);

Info MakeInfo(const Header& header);

}  // namespace platter::vdi
