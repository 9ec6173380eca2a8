// Consistency check and repair of a qcow2 image, on its Store and without opening it as a layer: a
// damaged image must be checkable where it cannot be opened, and the check shares no table cache
// with anybody. docs/formats/qcow2.md says what counts as a leak, a corruption and an error.
#pragma once

#include "base/result.h"
#include "formats/format.h"
#include "io/store.h"

namespace platter::qcow2 {

// Compares every reference in the image with the stored refcounts, and with options.repair mends
// what can be mended (see qcow2_repair.h). External data and parents are not opened; of `open`
// nothing is needed. Nobody else may use the store meanwhile when it is repaired.
//
// Fails only where there is nothing to check: the header is not one (kCorrupt), it asks for what
// we do not know (kUnsupported), the store cannot be read or, for a repair, written. Everything
// else is a finding. After a repair leaks, corruptions and errors count what is left.
Result<CheckReport> CheckQcow2(Store& store, const OpenOptions& open, const CheckOptions& options);

// What a writable open does where the dirty bit is set: makes the refcounts right again, which a
// crash of a program that updates them lazily has left behind, and clears the bit. Does nothing to
// an image that is not dirty. kCorrupt if the refcounts cannot be made right.
Result<> RepairDirty(Store& store);

}  // namespace platter::qcow2
