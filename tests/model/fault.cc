#include "tests/model/fault.h"

#include <fmt/core.h>

#include "io/fault_store.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/model.h"

namespace platter::model {
namespace {

using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

// What one fault is tried on.
struct Start {
  MemoryStore image;
  std::vector<std::byte> bytes;
};

// An image with some content, closed.
AssertionResult Prepare(const Subject& subject, const Plan& plan, Start& start) {
  auto layer = CreateAndOpen(subject, start.image);
  if (!layer) return AssertionFailure() << layer.error().text();
  start.bytes = InitialBytes(subject);
  Actor actor(start.bytes, subject.unit, Random(plan.seed ^ 0x5eed), Errors::kAreFailures);
  for (int i = 0; i < 20; ++i) {
    if (auto done = actor.Step(**layer, {0, subject.size}); !done) return done;
  }
  auto flushed = (*layer)->Flush();
  if (!flushed) return AssertionFailure() << flushed.error().text();
  return AssertionSuccess();
}

// Opens the image again, without faults, and looks at everything.
AssertionResult Inspect(const Subject& subject, Store& store, std::vector<std::byte>& bytes) {
  if (auto sound = CheckImage(subject, store); !sound) return sound;
  auto layer = subject.open(store);
  if (!layer) return AssertionFailure() << "reopening: " << layer.error().text();
  Actor judge(bytes, subject.unit, Random(0), Errors::kAreFailures);
  return judge.Verify(**layer, {0, subject.size});
}

AssertionResult TryOne(const Subject& subject, const Plan& plan, const Start& start,
                       FaultPlan& faults) {
  std::unique_ptr<MemoryStore> image = start.image.Clone();
  std::vector<std::byte> bytes = start.bytes;
  FaultStore store(std::make_unique<WrapperStore>(*image), faults);
  std::string last = "open";
  auto layer = subject.open(store);
  if (!layer) {
    if (!faults.fired()) return AssertionFailure() << "open: " << layer.error().text();
  } else {
    Actor actor(bytes, subject.unit, Random(plan.seed), Errors::kMayHappen);
    for (int i = 0; i < plan.operations; ++i) {
      auto done = actor.Step(**layer, {0, subject.size});
      if (done && actor.failures() > (faults.fired() ? 1 : 0)) {
        done = AssertionFailure() << "failed without a fault: " << actor.last_error();
      }
      if (!done) return AssertionFailure() << actor.last() << ": " << done.message();
    }
    faults.Disarm();
    if (auto done = actor.Verify(**layer, {0, subject.size}); !done) return done;
    auto flushed = (*layer)->Flush();
    if (!flushed) return AssertionFailure() << "the last flush: " << flushed.error().text();
    layer->reset();
  }
  return Inspect(subject, *image, bytes);
}

}  // namespace

AssertionResult RunFaults(const Subject& subject, Plan plan) {
  Start start;
  if (auto done = Prepare(subject, plan, start); !done) {
    return AssertionFailure() << subject.name << ", preparing: " << done.message();
  }
  for (uint64_t k = 0;; ++k) {
    FaultPlan faults(k);
    auto done = TryOne(subject, plan, start, faults);
    if (!done) {
      return AssertionFailure() << fmt::format("{}, seed {} (PLATTER_MODEL_SEED), fault {}: {}",
                                               subject.name, plan.seed, k, done.message());
    }
    if (!faults.fired()) return AssertionSuccess();
  }
}

}  // namespace platter::model
