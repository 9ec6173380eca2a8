#include "tests/model/power_cut.h"

#include <fmt/core.h>

#include "io/crash_store.h"
#include "tests/model/model.h"

namespace platter::model {
namespace {

using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

// States of the disk that are tried at each moment.
constexpr uint64_t kStates = 6;

// What the disk may read as at any moment of a run.
class History {
 public:
  explicit History(std::vector<std::byte> initial) { flushes_.push_back({0, std::move(initial)}); }

  // An operation that began at `boundary` left `bytes` in `range`.
  void Wrote(uint64_t boundary, Range range, ConstBytes bytes) {
    writes_.push_back({boundary, range, {bytes.begin(), bytes.end()}});
  }
  // `bytes` were acknowledged as durable at `boundary`.
  void Flushed(uint64_t boundary, const std::vector<std::byte>& bytes) {
    flushes_.push_back({boundary, bytes});
  }

  // Whether a disk cut off at `boundary` may read as `bytes`.
  AssertionResult Allows(uint64_t boundary, const std::vector<std::byte>& bytes) const {
    const Flush* flush = &flushes_.front();
    for (const Flush& candidate : flushes_) {
      if (candidate.boundary <= boundary) flush = &candidate;
    }
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] == flush->bytes[i] || WrittenSince(*flush, boundary, i, bytes[i])) continue;
      return AssertionFailure() << fmt::format(
                 "byte {:#x} is {:#04x}; the flush at boundary {} left {:#04x}, and nothing since "
                 "then wrote that",
                 i, static_cast<unsigned>(bytes[i]), flush->boundary,
                 static_cast<unsigned>(flush->bytes[i]));
    }
    return AssertionSuccess();
  }

 private:
  struct Flush {
    uint64_t boundary;
    std::vector<std::byte> bytes;
  };
  struct Written {
    uint64_t boundary;
    Range range;
    std::vector<std::byte> bytes;
  };

  bool WrittenSince(const Flush& flush, uint64_t boundary, uint64_t at, std::byte value) const {
    for (const Written& write : writes_) {
      // Writes that ended before the flush began are in it; that they are let through here as well
      // would hide a lost one, so they are not.
      if (write.boundary < flush.boundary || write.boundary > boundary) continue;
      if (write.range.Contains(at) && write.bytes[at - write.range.offset] == value) return true;
    }
    return false;
  }

  std::vector<Flush> flushes_;
  std::vector<Written> writes_;
};

// Operations on the recorded store.
AssertionResult Record(const Subject& subject, const Plan& plan, Store& store,
                       const CrashRecorder& recorder, History& history) {
  auto layer = subject.open(store);
  if (!layer) return AssertionFailure() << "open: " << layer.error().text();
  std::vector<std::byte> bytes = InitialBytes(subject);
  Actor actor(bytes, subject.unit, Random(plan.seed), Errors::kAreFailures);
  for (int i = 0; i < plan.operations; ++i) {
    uint64_t began = recorder.boundary();
    auto done = actor.Step(**layer, {0, subject.size});
    Range changed = actor.changed();
    if (done && !changed.empty()) {
      history.Wrote(began, changed, ConstBytes(bytes).subspan(changed.offset, changed.length));
    }
    // The model flushes seldom; here it is what matters.
    if (done && (actor.flushed() || actor.random().OneIn(4))) {
      auto flushed = (*layer)->Flush();
      if (!flushed) done = AssertionFailure() << "flush: " << flushed.error().text();
      history.Flushed(recorder.boundary(), bytes);
    }
    if (!done) return AssertionFailure() << actor.last() << ": " << done.message();
  }
  return AssertionSuccess();
}

AssertionResult Inspect(const Subject& subject, const History& history, uint64_t boundary,
                        Store& image, uint64_t seed) {
  if (auto sound = CheckImage(subject, image); !sound) return sound;
  auto layer = subject.open(image);
  if (!layer) return AssertionFailure() << "reopening: " << layer.error().text();
  std::vector<std::byte> bytes(subject.size);
  auto read = Read(**layer, 0, Bytes(bytes));
  if (!read) return AssertionFailure() << "reading: " << read.error().text();
  if (auto allowed = history.Allows(boundary, bytes); !allowed) return allowed;
  // Life goes on.
  Actor actor(bytes, subject.unit, Random(seed), Errors::kAreFailures);
  for (int i = 0; i < 3; ++i) {
    if (auto done = actor.Step(**layer, {0, subject.size}); !done) {
      return AssertionFailure() << "after the cut, " << actor.last() << ": " << done.message();
    }
  }
  if (auto flushed = (*layer)->Flush(); !flushed) {
    return AssertionFailure() << "after the cut, flush: " << flushed.error().text();
  }
  if (auto sound = CheckImage(subject, image); !sound) return sound;
  return actor.Verify(**layer, {0, subject.size});
}

}  // namespace

AssertionResult RunPowerCuts(const Subject& subject, Plan plan, uint64_t* cuts) {
  auto in_context = [&](std::string_view where, const AssertionResult& result) {
    return AssertionFailure() << fmt::format("{}, seed {} (PLATTER_MODEL_SEED), {}: {}",
                                             subject.name, plan.seed, where, result.message());
  };
  MemoryStore initial;
  if (auto created = subject.create(initial); !created) {
    return AssertionFailure() << "create: " << created.error().text();
  }
  CrashRecorder recorder;
  std::unique_ptr<Store> store = recorder.NewStore(initial);
  History history(InitialBytes(subject));
  if (auto done = Record(subject, plan, *store, recorder, history); !done) {
    return in_context("recording", done);
  }
  for (uint64_t boundary = 0; boundary <= recorder.boundary(); ++boundary) {
    for (uint64_t state = 0; state < kStates; ++state) {
      // The two plain states each time, and others of the many.
      uint64_t seed = state < 2 ? state : 2 + boundary * kStates + state;
      std::unique_ptr<MemoryStore> image = recorder.Crash(boundary, seed);
      if (cuts) ++*cuts;
      auto done =
          Inspect(subject, history, boundary, *image, plan.seed + boundary * kStates + state);
      if (!done) return in_context(fmt::format("cut {}, disk state {}", boundary, seed), done);
    }
  }
  return AssertionSuccess();
}

}  // namespace platter::model
