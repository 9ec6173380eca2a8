// Power cuts: what a disk may hold when the power fails at any moment.
#pragma once

#include <gtest/gtest.h>

#include "tests/model/subject.h"

namespace platter::model {

// Runs plan.operations operations on a store that records them. For each moment between two of the
// store's events, and several of the states that a disk may be in at that moment: the image has no
// corruption, opens, and reads as follows. A byte has the value of the last acknowledged Flush, or
// one that an operation since then gave it. What is written after the reopening is kept, too.
// `cuts`, if not null, is increased by how many disks were looked at.
testing::AssertionResult RunPowerCuts(const Subject& subject, Plan plan, uint64_t* cuts = nullptr);

}  // namespace platter::model
