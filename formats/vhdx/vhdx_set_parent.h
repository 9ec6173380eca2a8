// Another parent for an image that is there; see Format::set_parent.
#pragma once

#include <optional>

#include "formats/format.h"

namespace platter::vhdx {

Result<> SetVhdxParent(Store& store, const OpenOptions& open,
                       const std::optional<Reference>& parent,
                       const std::optional<ParentFile>& file);

}  // namespace platter::vhdx
