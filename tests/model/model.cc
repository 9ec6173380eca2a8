#include "tests/model/model.h"

#include <fmt/core.h>

#include <cstdlib>
#include <mutex>
#include <thread>

#include "base/sync.h"
#include "io/iov.h"
#include "io/memory_store.h"
#include "io/testing/toy_layer.h"

namespace platter::model {

using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

namespace {

// `bytes` cut into one to four pieces at random places, as callers' scatter lists are.
std::vector<iovec> Pieces(Random& random, Bytes bytes) {
  std::vector<iovec> pieces;
  while (!bytes.empty()) {
    size_t length =
        pieces.size() == 3 || random.OneIn(2) ? bytes.size() : random.Between(1, bytes.size());
    pieces.push_back({bytes.data(), length});
    bytes = bytes.subspan(length);
  }
  return pieces;
}

AssertionResult Differ(uint64_t at, std::byte is, std::string_view should) {
  return AssertionFailure() << fmt::format("byte {:#x} is {:#04x}, should be {}", at,
                                           static_cast<unsigned>(is), should);
}

AssertionResult Failed(const Error& error) {
  return AssertionFailure() << "failed: " << error.text();
}

}  // namespace

Plan Plan::FromEnvironment(Plan plan) {
  if (const char* seed = std::getenv("PLATTER_MODEL_SEED"))
    plan.seed = std::strtoull(seed, nullptr, 0);
  if (const char* count = std::getenv("PLATTER_MODEL_OPERATIONS"))
    plan.operations = std::atoi(count);
  return plan;
}

// ---- Operations ----

// Likes small sizes, borders of units and the end of the disk.
Range Actor::PickRange(Range within) {
  auto near_border = [&](uint64_t at) {
    if (random_.OneIn(3)) return at;
    int64_t nudge = random_.OneIn(2) ? 0 : static_cast<int64_t>(random_.Between(0, 1200)) - 600;
    return static_cast<uint64_t>(static_cast<int64_t>(RoundDown(at, unit_)) + nudge);
  };
  uint64_t begin = near_border(random_.Between(within.offset, within.end()));
  uint64_t length = 0;
  switch (random_.Below(4)) {
    case 0: length = random_.Between(1, 700); break;
    case 1: length = random_.Between(1, unit_); break;
    default: length = random_.Between(1, 6 * unit_); break;
  }
  uint64_t end = near_border(begin + length);
  if (end < begin) std::swap(begin, end);
  Range range = Range::FromTo(begin, end + 1).Intersect(within);
  return range.empty() || begin > within.end() ? Range{within.offset, 1} : range;
}

AssertionResult Actor::Step(Layer& layer, Range within) {
  Range range = PickRange(within);
  changed_ = range;
  flushed_ = false;
  auto run = [&](std::string_view what, auto operation) {
    last_ = fmt::format("{} {:#x}+{:#x}", what, range.offset, range.length);
    return (this->*operation)(layer, range);
  };
  uint64_t dice = random_.Below(100);
  if (dice < 35) {
    changed_ = {};
    return run("read", &Actor::ReadBack);
  }
  if (dice < 70) return run("write", &Actor::WriteRandom);
  if (dice < 78 && layer.info().compressed_units) return run("packed write", &Actor::WritePacked);
  if (dice < 88) return run("zero", &Actor::ZeroRange);
  if (dice < 95) return run("discard", &Actor::DiscardRange);
  changed_ = {};
  last_ = "flush";
  return FlushAll(layer);
}

AssertionResult Actor::ReadBack(Layer& layer, Range range) {
  std::vector<std::byte> bytes(range.length, std::byte{0xa5});
  std::vector<iovec> pieces = Pieces(random_, bytes);
  auto done = Read(layer, range.offset, pieces);
  if (!done) return Excuse(done.error());
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != Slice(range)[i]) {
      return Differ(range.offset + i, bytes[i],
                    fmt::format("{:#04x}", static_cast<unsigned>(Slice(range)[i])));
    }
  }
  std::vector<std::byte> quick(range.length, std::byte{0xa5});
  pieces = Pieces(random_, quick);
  size_t served = TryRead(layer, range.offset, pieces);
  if (served > quick.size()) return AssertionFailure() << "TryRead served " << served << " bytes";
  for (size_t i = 0; i < served; ++i) {
    if (quick[i] != bytes[i]) return Differ(range.offset + i, quick[i], "as Read said (TryRead)");
  }
  return AssertionSuccess();
}

AssertionResult Actor::WriteRandom(Layer& layer, Range range) {
  std::vector<std::byte> value(range.length);
  if (!random_.OneIn(8)) random_.Fill(value);
  auto done = Write(layer, range.offset, Pieces(random_, value));
  return Settle(layer, range, value, done);
}

// Copies compressible content in, from another layer.
AssertionResult Actor::WritePacked(Layer& layer, Range range) {
  std::vector<std::byte> value(range.length);
  for (size_t i = 0; i < value.size(); ++i)
    value[i] = static_cast<std::byte>(i / 13 * (1 + range.offset % 7));
  if (random_.OneIn(3)) random_.Fill(Bytes(value).first(value.size() / 2));
  MemoryStore store;
  ToyLayer::Options options{.size = bytes_.size()};
  auto prepare = [&]() -> Result<std::unique_ptr<ToyLayer>> {
    TRY(ToyLayer::Create(store, options));
    auto from = TRY(ToyLayer::Open(store, options));
    TRY(Write(*from, range.offset, value));
    return from;
  };
  auto from = prepare();
  if (!from) return Failed(from.error());
  CopyOptions copy;
  copy.threads = 2;
  copy.sparse = random_.OneIn(2) ? 0 : 4096;
  copy.compress = true;
  auto done = Copy(**from, layer, range, copy);
  return Settle(layer, range, value, done);
}

AssertionResult Actor::ZeroRange(Layer& layer, Range range) {
  auto done = Zero(layer, range, random_.OneIn(2));
  return Settle(layer, range, std::vector<std::byte>(range.length), done);
}

AssertionResult Actor::DiscardRange(Layer& layer, Range range) {
  auto done = Discard(layer, range);
  if (!done) {
    if (auto excused = Excuse(done.error()); !excused) return excused;
  }
  return Adopt(layer, range, std::vector<std::byte>(range.length));
}

AssertionResult Actor::FlushAll(Layer& layer) {
  auto done = layer.Flush();
  flushed_ = done.has_value();
  return done ? AssertionSuccess() : Excuse(done.error());
}

AssertionResult Actor::Excuse(const Error& error) {
  if (errors_ == Errors::kAreFailures) return Failed(error);
  ++failures_;
  last_error_ = error.text();
  return AssertionSuccess();
}

// After a write: the array gets `value`; after a failed one, whatever the layer made of it.
AssertionResult Actor::Settle(Layer& layer, Range range, ConstBytes value, const Result<>& done) {
  if (!done) {
    if (auto excused = Excuse(done.error()); !excused) return excused;
    return Adopt(layer, range, value);
  }
  std::ranges::copy(value, Slice(range).begin());
  return AssertionSuccess();
}

// Each byte of `range` must be as the array or as `value` says; the array takes what it is.
AssertionResult Actor::Adopt(Layer& layer, Range range, ConstBytes value) {
  std::vector<std::byte> now(range.length);
  auto read = Read(layer, range.offset, Bytes(now));
  if (!read) {
    // The fault may have come this late; it comes only once.
    if (auto excused = Excuse(read.error()); !excused) return excused;
    read = Read(layer, range.offset, Bytes(now));
  }
  if (!read) return Failed(std::move(read.error()).WithPrefix("reading back"));
  for (size_t i = 0; i < now.size(); ++i) {
    if (now[i] != value[i] && now[i] != Slice(range)[i]) {
      return Differ(range.offset + i, now[i], "its old or its new value");
    }
  }
  std::ranges::copy(now, Slice(range).begin());
  return AssertionSuccess();
}

AssertionResult Actor::Verify(Layer& layer, Range within) const {
  constexpr uint64_t kPiece = kMiB;
  std::vector<std::byte> bytes;
  for (uint64_t at = within.offset; at < within.end(); at += bytes.size()) {
    bytes.resize(std::min(kPiece, within.end() - at));
    if (auto done = Read(layer, at, Bytes(bytes)); !done) return Failed(done.error());
    Bytes should = Slice({at, bytes.size()});
    auto [is, expected] = std::ranges::mismatch(bytes, should);
    if (is != bytes.end()) {
      return Differ(at + (is - bytes.begin()), *is,
                    fmt::format("{:#04x}", static_cast<unsigned>(*expected)));
    }
  }
  return AssertionSuccess();
}

// ---- Drivers ----

std::vector<std::byte> InitialBytes(const Subject& subject) {
  return subject.initial.empty() ? std::vector<std::byte>(subject.size) : subject.initial;
}

Result<std::unique_ptr<Layer>> CreateAndOpen(const Subject& subject, Store& store) {
  TRY_AS("create", subject.create(store));
  return subject.open(store).WithPrefix("open");
}

AssertionResult CheckImage(const Subject& subject, Store& store) {
  if (!subject.check) return AssertionSuccess();
  auto sound = subject.check(store);
  if (!sound) return Failed(std::move(sound.error()).WithPrefix("check"));
  return *sound ? AssertionSuccess() : AssertionFailure() << "the check found corruption";
}

namespace {

AssertionResult InContext(AssertionResult result, const Subject& subject, const Plan& plan,
                          std::string_view where) {
  if (result) return result;
  return AssertionFailure() << fmt::format("{}, seed {} (PLATTER_MODEL_SEED), {}: {}", subject.name,
                                           plan.seed, where, result.message());
}

// What the image holds survives closing and opening.
AssertionResult Reopen(const Subject& subject, Store& store, std::unique_ptr<Layer>& layer) {
  if (auto flushed = layer->Flush(); !flushed) return Failed(flushed.error());
  layer.reset();
  if (auto sound = CheckImage(subject, store); !sound) return sound;
  auto opened = subject.open(store);
  if (!opened) return Failed(std::move(opened.error()).WithPrefix("reopen"));
  layer = std::move(*opened);
  return AssertionSuccess();
}

}  // namespace

AssertionResult RunModel(const Subject& subject, Plan plan) {
  MemoryStore store;
  auto opened = CreateAndOpen(subject, store);
  if (!opened) return Failed(opened.error());
  std::unique_ptr<Layer> layer = std::move(*opened);
  std::vector<std::byte> bytes = InitialBytes(subject);
  Actor actor(bytes, subject.unit, Random(plan.seed), Errors::kAreFailures);
  const Range all{0, subject.size};
  for (int i = 0; i < plan.operations; ++i) {
    auto done = actor.Step(*layer, all);
    if (!done)
      return InContext(done, subject, plan, fmt::format("operation {}: {}", i, actor.last()));
    if (actor.random().OneIn(60)) done = Reopen(subject, store, layer);
    if (done && actor.random().OneIn(20)) done = actor.Verify(*layer, all);
    if (!done) return InContext(done, subject, plan, fmt::format("after operation {}", i));
  }
  auto done = Reopen(subject, store, layer);
  if (done) done = actor.Verify(*layer, all);
  return InContext(done, subject, plan, "at the end");
}

AssertionResult RunParallelModel(const Subject& subject, Plan plan) {
  MemoryStore store;
  auto opened = CreateAndOpen(subject, store);
  if (!opened) return Failed(opened.error());
  std::unique_ptr<Layer> layer = std::move(*opened);
  std::vector<std::byte> bytes = InitialBytes(subject);
  Random random(plan.seed);
  Mutex mutex;  // guards failure
  AssertionResult failure = AssertionSuccess();

  const int rounds = std::max(1, plan.operations / 40);
  for (int round = 0; round < rounds && failure; ++round) {
    // Stripes dealt out in turn; many are narrower than a unit, so that neighbours share one.
    std::vector<std::vector<Range>> mine(plan.threads);
    for (uint64_t at = 0, n = 0; at < subject.size; ++n) {
      uint64_t width = random.Between(1, random.OneIn(3) ? 4 * subject.unit : subject.unit);
      uint64_t end = std::min(subject.size, at + width);
      mine[n % plan.threads].push_back(Range::FromTo(at, end));
      at = end;
    }
    std::vector<std::jthread> threads;
    for (int t = 0; t < plan.threads; ++t) {
      threads.emplace_back([&, t, seed = random.Next()] {
        if (mine[t].empty()) return;
        Actor actor(bytes, subject.unit, Random(seed), Errors::kAreFailures);
        for (int i = 0; i < 40; ++i) {
          Range stripe = mine[t][actor.random().Below(mine[t].size())];
          auto done = actor.Step(*layer, stripe);
          if (done) done = actor.Verify(*layer, stripe);
          if (done) continue;
          std::lock_guard lock(mutex);
          failure = InContext(done, subject, plan,
                              fmt::format("round {}, thread {}: {}", round, t, actor.last()));
          return;
        }
      });
    }
    threads.clear();
    if (failure && round % 4 == 3) failure = Reopen(subject, store, layer);
  }
  if (!failure) return failure;
  Actor judge(bytes, subject.unit, random, Errors::kAreFailures);
  auto done = judge.Verify(*layer, {0, subject.size});
  if (done) done = Reopen(subject, store, layer);
  if (done) done = judge.Verify(*layer, {0, subject.size});
  return InContext(done, subject, plan, "at the end");
}

}  // namespace platter::model
