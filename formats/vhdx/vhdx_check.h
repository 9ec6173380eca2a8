// Consistency check and repair of a VHDX image. docs/formats/vhdx.md says what counts as what.
#pragma once

#include "base/result.h"
#include "formats/format.h"
#include "io/store.h"

namespace platter::vhdx {

// Both headers, both region tables, the log, and everything that the BAT names. Fails where there
// is nothing to check: no valid header, a log that cannot be replayed, no metadata. With
// CheckOptions::kLeaks the log is replayed and what lies behind the last used MiB is cut off; with
// kAll bad copies of headers and region tables are written anew as well. What the BAT says wrong is
// never repaired: nobody knows what was meant.
Result<CheckReport> CheckVhdx(Store& store, const OpenOptions& open, const CheckOptions& options);

}  // namespace platter::vhdx
