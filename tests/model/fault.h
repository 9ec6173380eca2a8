// Faults: fail the k-th call of the store, for every k until none fires.
#pragma once

#include <gtest/gtest.h>

#include "tests/model/subject.h"

namespace platter::model {

// For each k: opens the same image, does the same plan.operations operations, of which at most the
// one that met the fault may fail; whatever failed left each byte old or new and all others alone;
// everything after it works; Flush, reopening and the check succeed in the end.
testing::AssertionResult RunFaults(const Subject& subject, Plan plan);

}  // namespace platter::model
