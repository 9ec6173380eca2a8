#include "tests/model/resize.h"

#include <fmt/core.h>

#include <algorithm>

#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/fault_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/model.h"

namespace platter::model {
namespace {

using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

constexpr uint64_t kStates = 6;         // of the disk, tried at each moment
constexpr uint64_t kEdge = 160 * kKiB;  // bytes looked at on both sides of what was added
constexpr int kSteps = 12;              // random operations before a resize

// `range` reads as `content`, behind whose end all is zeros; from `doubtful` on zeros will do.
AssertionResult Reads(Layer& layer, Range range, ConstBytes content, uint64_t doubtful) {
  std::vector<std::byte> bytes(range.length);
  if (bytes.empty()) return AssertionSuccess();
  auto read = Read(layer, range.offset, Bytes(bytes));
  if (!read) return AssertionFailure() << "reading: " << read.error().text();
  for (uint64_t i = 0; i < bytes.size(); ++i) {
    const uint64_t at = range.offset + i;
    const std::byte want = at < content.size() ? content[at] : std::byte{0};
    if (bytes[i] == want || (at >= doubtful && bytes[i] == std::byte{0})) continue;
    return AssertionFailure() << fmt::format("of {:#x} bytes, byte {:#x} is {:#04x}, not {:#04x}",
                                             layer.info().size, at, static_cast<unsigned>(bytes[i]),
                                             static_cast<unsigned>(want));
  }
  return AssertionSuccess();
}

// All of the old content, and both ends of what is behind it.
AssertionResult Holds(Layer& layer, ConstBytes content, uint64_t doubtful) {
  const uint64_t size = layer.info().size;
  content = content.first(std::min<uint64_t>(content.size(), size));
  const Range near = Range{0, content.size() + kEdge}.Intersect({0, size});
  if (auto done = Reads(layer, near, content, doubtful); !done) return done;
  const uint64_t last = std::max(near.end(), size - std::min(size, kEdge));
  return Reads(layer, Range::FromTo(last, size), content, doubtful);
}

// What one resize is tried on.
struct Start {
  MemoryStore image;
  std::vector<std::byte> content;
};

AssertionResult Prepare(const Subject& subject, const Plan& plan, Start& start) {
  auto layer = CreateAndOpen(subject, start.image);
  if (!layer) return AssertionFailure() << layer.error().text();
  start.content.resize(subject.size);
  Random(plan.seed).Fill(Bytes(start.content));
  auto written = Write(**layer, 0, ConstBytes(start.content));
  if (!written) return AssertionFailure() << written.error().text();
  Actor actor(start.content, subject.unit, Random(plan.seed), Errors::kAreFailures);
  for (int i = 0; i < kSteps; ++i) {
    if (auto done = actor.Step(**layer, {0, subject.size}); !done) return done;
  }
  auto flushed = (*layer)->Flush();
  if (!flushed) return AssertionFailure() << flushed.error().text();
  return AssertionSuccess();
}

Result<> Resize(const Subject& subject, Store& store, uint64_t size) {
  auto layer = TRY(subject.open(store));
  TRY(layer->resizer()->Resize(size, Preallocation::kOff));
  return layer->Flush();
}

// The image after an interrupted resize to `size`; `done`: the resize was acknowledged.
AssertionResult IsOldOrNew(const Subject& subject, const Start& start, Store& image, uint64_t size,
                           bool done) {
  if (auto sound = CheckImage(subject, image); !sound) return sound;
  auto layer = subject.open(image);
  if (!layer) return AssertionFailure() << "reopening: " << layer.error().text();
  const uint64_t now = (*layer)->info().size;
  if (now != size && (done || now != subject.size)) {
    return AssertionFailure() << "the disk has " << now << " bytes";
  }
  const uint64_t doubtful = now == size ? UINT64_MAX : size;
  return Holds(**layer, start.content, doubtful);
}

// The same once more, now undisturbed.
AssertionResult TryAgain(const Subject& subject, const Start& start, Store& image, uint64_t size) {
  auto resized = Resize(subject, image, size);
  if (!resized) return AssertionFailure() << "once more: " << resized.error().text();
  if (auto sound = CheckImage(subject, image); !sound) return sound;
  auto layer = subject.open(image);
  if (!layer) return AssertionFailure() << "reopening: " << layer.error().text();
  if ((*layer)->info().size != size) {
    return AssertionFailure() << "once more: the disk has " << (*layer)->info().size << " bytes";
  }
  return Holds(**layer, start.content, UINT64_MAX);
}

AssertionResult CutPower(const Subject& subject, const Start& start, uint64_t size) {
  CrashRecorder recorder;
  std::unique_ptr<Store> store = recorder.NewStore(start.image);
  auto resized = Resize(subject, *store, size);
  if (!resized) return AssertionFailure() << resized.error().text();
  for (uint64_t boundary = 0; boundary <= recorder.boundary(); ++boundary) {
    for (uint64_t state = 0; state < kStates; ++state) {
      const uint64_t seed = state < 2 ? state : 2 + boundary * kStates + state;
      auto image = recorder.Crash(boundary, seed);
      const bool last = boundary == recorder.boundary();
      auto right = IsOldOrNew(subject, start, *image, size, last && state == 1);
      if (right && state < 2) right = TryAgain(subject, start, *image, size);
      if (!right) {
        return AssertionFailure() << fmt::format("cut {} of {}, disk state {}: {}", boundary,
                                                 recorder.boundary(), seed, right.message());
      }
    }
  }
  return AssertionSuccess();
}

AssertionResult FailCalls(const Subject& subject, const Start& start, uint64_t size) {
  for (uint64_t k = 0;; ++k) {
    FaultPlan faults(k);
    std::unique_ptr<MemoryStore> image = start.image.Clone();
    FaultStore store(std::make_unique<WrapperStore>(*image), faults);
    const bool done = Resize(subject, store, size).has_value();
    faults.Disarm();
    auto right = IsOldOrNew(subject, start, *image, size, done);
    if (right) right = TryAgain(subject, start, *image, size);
    if (!right) return AssertionFailure() << fmt::format("fault {}: {}", k, right.message());
    if (!faults.fired()) return AssertionSuccess();
  }
}

using Trial = AssertionResult (*)(const Subject& subject, const Start& start, uint64_t size);

AssertionResult RunTrials(const Subject& subject, std::span<const uint64_t> sizes, const Plan& plan,
                          Trial trial) {
  Start start;
  if (auto done = Prepare(subject, plan, start); !done) {
    return AssertionFailure() << subject.name << ", preparing: " << done.message();
  }
  for (uint64_t size : sizes) {
    if (auto done = trial(subject, start, size); !done) {
      return AssertionFailure() << fmt::format(
                 "{}, seed {} (PLATTER_MODEL_SEED), {} to {} bytes: {}", subject.name, plan.seed,
                 subject.size, size, done.message());
    }
  }
  return AssertionSuccess();
}

}  // namespace

AssertionResult RunResizes(const Subject& subject, std::span<const uint64_t> sizes, Plan plan) {
  Start start;
  if (auto done = Prepare(subject, plan, start); !done) {
    return AssertionFailure() << subject.name << ", preparing: " << done.message();
  }
  auto in_context = [&](uint64_t size, std::string_view what) {
    return AssertionFailure() << fmt::format("{}, seed {} (PLATTER_MODEL_SEED), to {} bytes: {}",
                                             subject.name, plan.seed, size, what);
  };
  for (uint64_t size : sizes) {
    {
      auto layer = subject.open(start.image);
      if (!layer) return in_context(size, layer.error().text());
      auto resized = (*layer)->resizer()->Resize(size, Preallocation::kOff);
      if (!resized) return in_context(size, resized.error().text());
      // The model has the beginning of a disk that is too large for it.
      if ((*layer)->info().size != size) return in_context(size, "another size than asked for");
      start.content.resize(std::min<uint64_t>(start.content.size(), size));
      if (auto right = Holds(**layer, start.content, UINT64_MAX); !right) {
        return in_context(size, right.message());
      }
      start.content.resize(std::min<uint64_t>(size, 2 * subject.size));
      Actor actor(start.content, subject.unit, Random(plan.seed + size), Errors::kAreFailures);
      for (int i = 0; i < kSteps && size > 0; ++i) {
        auto done = actor.Step(**layer, {0, start.content.size()});
        if (!done) return in_context(size, done.message());
      }
      if (auto flushed = (*layer)->Flush(); !flushed)
        return in_context(size, flushed.error().text());
    }
    if (auto sound = CheckImage(subject, start.image); !sound) {
      return in_context(size, sound.message());
    }
    auto layer = subject.open(start.image);
    if (!layer) return in_context(size, layer.error().text());
    if (auto right = Holds(**layer, start.content, UINT64_MAX); !right) {
      return in_context(size, right.message());
    }
  }
  return AssertionSuccess();
}

AssertionResult RunResizePowerCuts(const Subject& subject, std::span<const uint64_t> sizes,
                                   Plan plan) {
  return RunTrials(subject, sizes, plan, CutPower);
}

AssertionResult RunResizeFaults(const Subject& subject, std::span<const uint64_t> sizes,
                                Plan plan) {
  return RunTrials(subject, sizes, plan, FailCalls);
}

}  // namespace platter::model
