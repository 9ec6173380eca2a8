// The model: a Layer under seeded operations against a flat array of bytes.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "io/engine/engine.h"
#include "tests/model/random.h"
#include "tests/model/subject.h"

namespace platter::model {

enum class Errors : uint8_t {
  kAreFailures,  // every operation must succeed
  kMayHappen,    // a fault was injected: a failed write leaves each byte old or new
};

// Does operations to a layer and to the array that says what it should hold. Several may work on
// one array, each inside a range of its own.
class Actor {
 public:
  // `bytes` is the whole disk; `unit` as in Subject.
  Actor(Bytes bytes, uint64_t unit, Random random, Errors errors)
      : bytes_(bytes), unit_(unit), random_(random), errors_(errors) {}

  // One random operation inside `within`: read, write, zero, discard, packed write or flush.
  testing::AssertionResult Step(Layer& layer, Range within);

  // All of `within` reads as the array says.
  testing::AssertionResult Verify(Layer& layer, Range within) const;

  // What Step did last, for messages; whether it was a write that changed `changed()`, or a Flush
  // that succeeded.
  const std::string& last() const { return last_; }
  Range changed() const { return changed_; }
  bool flushed() const { return flushed_; }

  // Operations that failed, and what the last one said.
  int failures() const { return failures_; }
  const std::string& last_error() const { return last_error_; }

  Random& random() { return random_; }

 private:
  Range PickRange(Range within);
  testing::AssertionResult ReadBack(Layer& layer, Range range);
  testing::AssertionResult WriteRandom(Layer& layer, Range range);
  testing::AssertionResult WritePacked(Layer& layer, Range range);
  testing::AssertionResult ZeroRange(Layer& layer, Range range);
  testing::AssertionResult DiscardRange(Layer& layer, Range range);
  testing::AssertionResult FlushAll(Layer& layer);
  testing::AssertionResult Settle(Layer& layer, Range range, ConstBytes value,
                                  const Result<>& done);
  // Whether the failure is one that a fault explains; notes it.
  testing::AssertionResult Excuse(const Error& error);
  testing::AssertionResult Adopt(Layer& layer, Range range, ConstBytes value);
  Bytes Slice(Range range) const { return bytes_.subspan(range.offset, range.length); }

  const Bytes bytes_;
  const uint64_t unit_;
  Random random_;
  const Errors errors_;
  std::string last_;
  Range changed_;
  bool flushed_ = false;
  int failures_ = 0;
  std::string last_error_;
};

// What a new image of `subject` reads as.
std::vector<std::byte> InitialBytes(const Subject& subject);

// A new image in `store`, opened.
Result<std::unique_ptr<Layer>> CreateAndOpen(const Subject& subject, Store& store);

// `image` as the subject's check sees it.
testing::AssertionResult CheckImage(const Subject& subject, Store& store);

// Creates an image in memory and runs plan.operations on it, with reopening; verifies and checks
// it in the end.
testing::AssertionResult RunModel(const Subject& subject, Plan plan);

// plan.threads threads at once, each on bytes of its own, which share units with the others'.
testing::AssertionResult RunParallelModel(const Subject& subject, Plan plan);

}  // namespace platter::model
