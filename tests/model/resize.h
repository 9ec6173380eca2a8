// Resizing any layer: what was there stays, what is added reads as zeros, and whatever fails or
// loses power on the way, the disk has its old size or the new one.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <span>

#include "tests/model/subject.h"

namespace platter::model {

// Gives the disk each of `sizes` (bytes) in turn, with random operations before and after, and
// reopens it in between.
testing::AssertionResult RunResizes(const Subject& subject, std::span<const uint64_t> sizes,
                                    Plan plan);

// From the subject's size to each of `sizes`, on a disk full of random bytes: the power fails after
// each event of it. Then the image is sound, and the same resize succeeds.
testing::AssertionResult RunResizePowerCuts(const Subject& subject, std::span<const uint64_t> sizes,
                                            Plan plan);

// The same, with the k-th call of the store failing, for each k.
testing::AssertionResult RunResizeFaults(const Subject& subject, std::span<const uint64_t> sizes,
                                         Plan plan);

}  // namespace platter::model
