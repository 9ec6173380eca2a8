// Info of a VHD.
#pragma once

#include "formats/vhd/vhd_image.h"

namespace platter::vhd {

Info MakeInfo(const Footer& footer, SizeChoice size);
void AddDynamicInfo(Info& info, const Image& image, const std::optional<Reference>& parent);

}  // namespace platter::vhd
