// Checking and repairing VHDs.
#pragma once

#include "formats/format.h"

namespace platter::vhd {

// See Format::check. Corruptions: blocks that overlap one another or the headers, or lie past the
// end; a footer that is damaged or missing at either end; a batmap that calls a block full which is
// not; entries behind the end of the disk. Leaks: gaps that could hold a block.
Result<CheckReport> CheckVhd(Store& store, const OpenOptions& open, const CheckOptions& options);

}  // namespace platter::vhd
