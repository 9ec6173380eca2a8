// What schedule tests of layers share: a layer that threads put bytes into and get them from, and
// the scenarios of the contract (io/layer.h) that every layer which can be written to must bear.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "io/layer.h"
#include "tests/schedule/scheduler.h"

namespace platter::schedule {

class Bench {
 public:
  // Bytes of an allocation unit. The disk has at least eight of them, all zeros.
  explicit Bench(uint64_t unit) : unit(unit) {}
  virtual ~Bench() = default;

  virtual Layer& layer() = 0;
  // Closes the layer and says what is wrong with the image, if it can tell.
  virtual std::string Close() { return ""; }

  void Put(Range range, int value);
  std::vector<std::byte> Get(Range range);
  // What is wrong if the range does not hold one of these values throughout.
  std::string Expect(Range range, std::initializer_list<int> values);

  const uint64_t unit;
};
using BenchPtr = std::shared_ptr<Bench>;

// As Expect, of bytes that were read from `offset` on.
std::string Judge(ConstBytes bytes, uint64_t offset, std::initializer_list<int> values);
// The first that is not empty.
std::string First(std::initializer_list<std::string> verdicts);

// Two writers into one fresh unit, each different bytes: both are there afterwards.
Scenario TwoWriters(BenchPtr bench);
// Writers whose ranges overlap in fresh units.
Scenario OverlappingWriters(BenchPtr bench);
// A reader of a unit that is dropped meanwhile, and whose space another unit gets.
Scenario ReaderAgainstReuse(BenchPtr bench);
// The same for a writer in place: its late bytes must not land in another unit.
Scenario WriterAgainstReuse(BenchPtr bench);
// A fresh unit on space that held something: no reader sees that.
Scenario ReaderAgainstFreshUnit(BenchPtr bench);
// Discard, and an acknowledged write after it, against a writer in the same unit, which is fresh or
// holds something.
Scenario DiscardAgainstWriter(BenchPtr bench, bool fresh);

}  // namespace platter::schedule
