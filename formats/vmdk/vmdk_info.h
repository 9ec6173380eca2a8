// What a VMDK says of itself.
#pragma once

#include <vector>

#include "formats/vmdk/vmdk_descriptor.h"
#include "formats/vmdk/vmdk_parse.h"
#include "io/info.h"

namespace platter::vmdk {

// Of the descriptor; `sparse` of the first sparse extent that was opened, null if none was.
Info MakeInfo(const Descriptor& descriptor, const SparseGeometry* sparse);

// The file that an extent, or a parent's name, stands for: the name as it is, in UTF-8, from its
// Windows form, and with `beside` the file name alone.
Reference MakeReference(const Descriptor& descriptor, Reference::Role role, const std::string& name,
                        bool beside);

// "1234abcd".
std::string CidText(uint32_t cid);

}  // namespace platter::vmdk
