#include "io/crash_store.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>

#include "base/check.h"
#include "io/iov.h"

namespace platter {
namespace {

constexpr uint64_t kSector = 512;  // bytes: what a disk writes whole or not at all

uint64_t Mix(uint64_t value) {  // splitmix64
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

// Which of the unsynced events reached the disk, and which sectors of them.
class Fate {
 public:
  Fate(uint64_t seed, uint64_t events) : seed_(Mix(seed)), events_(events) {
    // Most bugs need one of the plain pictures: a lost write among kept ones, or the reverse.
    static constexpr Mode kModes[] = {kPrefix,    kSubset,  kSectors,
                                      kAllButOne, kOnlyOne, kTornPrefix};
    mode_ = seed == 0 ? kNone : seed == 1 ? kAll : kModes[seed % std::size(kModes)];
    chosen_ = events == 0 ? 0 : Mix(seed_ ^ 1) % events;
  }

  bool Keeps(uint64_t event, uint64_t sector) const {
    const bool sector_coin = (Mix(seed_ ^ Mix(event) ^ Mix(~sector)) & 1) != 0;
    switch (mode_) {
      case kNone: return false;
      case kAll: return true;
      case kPrefix: return event < chosen_;
      case kSubset: return (Mix(seed_ ^ Mix(event)) & 1) != 0;
      case kSectors: return sector_coin;
      case kAllButOne: return event != chosen_;
      case kOnlyOne: return event == chosen_;
      case kTornPrefix: return event < chosen_ || (event == chosen_ && sector_coin);
    }
    return false;
  }

  // The number of events whose effect on the length of the file is kept.
  uint64_t Lengths() const {
    static constexpr uint64_t kLength = ~uint64_t{0};  // no sector has this number
    for (uint64_t event = events_; event > 0; --event) {
      if (Keeps(event - 1, kLength)) return event;
    }
    return 0;
  }

 private:
  enum Mode { kNone, kAll, kPrefix, kSubset, kSectors, kAllButOne, kOnlyOne, kTornPrefix };
  const uint64_t seed_, events_;
  Mode mode_;
  uint64_t chosen_;
};

}  // namespace

struct CrashRecorder::Event {
  enum Kind : uint8_t { kWrite, kZero, kResize, kAllocate } kind;
  uint64_t number;  // among the events of all files
  Range range;      // kResize: length is the new size
  std::vector<std::byte> bytes;

  Result<> Apply(MemoryStore& store) const {
    switch (kind) {
      case kWrite: return store.Write(range.offset, bytes);
      case kZero: return store.Zero(range, true);
      case kResize: return store.Resize(range.length);
      case kAllocate: return store.Allocate(range);
    }
    return {};
  }
};

struct CrashRecorder::File {
  // A Sync: what is durable at any boundary from `boundary` to the next one's.
  struct Durable {
    uint64_t boundary;
    size_t events;  // of this file, that are in it
    std::unique_ptr<MemoryStore> contents;
  };
  std::unique_ptr<MemoryStore> now;
  std::vector<Event> events;
  std::vector<Durable> syncs;
};

// The store that tests hand to a format.
class CrashStore final : public Store {
 public:
  CrashStore(CrashRecorder& recorder, CrashRecorder::File& file)
      : recorder_(recorder), file_(file), name_(file.now->name()) {}

  Caps caps() const override { return file_.now->caps(); }
  const std::string& name() const override { return name_; }
  bool writable() const override { return true; }
  Result<uint64_t> Size() const override { return file_.now->Size(); }
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    return file_.now->Read(at, into);
  }
  size_t TryRead(uint64_t at, std::span<const iovec> into) override {
    return file_.now->TryRead(at, into);
  }
  Result<Run> FindRun(uint64_t at) override { return file_.now->FindRun(at); }

  Result<> Write(uint64_t at, std::span<const iovec> from) override {
    sched::Yield("store write");
    std::vector<std::byte> bytes(IovLength(from));
    IovGather(from, 0, bytes);
    Range range{at, bytes.size()};
    return Record({CrashRecorder::Event::kWrite, 0, range, std::move(bytes)});
  }
  Result<> Zero(Range range, bool) override {
    sched::Yield("store zero");
    return Record({CrashRecorder::Event::kZero, 0, range, {}});
  }
  Result<> Resize(uint64_t size) override {
    sched::Yield("store resize");
    return Record({CrashRecorder::Event::kResize, 0, Range{0, size}, {}});
  }
  Result<> Allocate(Range range) override {
    return Record({CrashRecorder::Event::kAllocate, 0, range, {}});
  }

  Result<> Sync() override {
    sched::Yield("store sync");
    std::lock_guard lock(recorder_.mutex_);
    file_.syncs.push_back({++recorder_.boundary_, file_.events.size(), file_.now->Clone()});
    return {};
  }

 private:
  Result<> Record(CrashRecorder::Event event) {
    std::lock_guard lock(recorder_.mutex_);
    // The memory store's own yield point would stop here with our lock held, to no use.
    sched::Hook* hook = std::exchange(sched::hook, nullptr);
    Result<> applied = event.Apply(*file_.now);
    sched::hook = hook;
    TRY(std::move(applied));
    event.number = recorder_.boundary_++;
    file_.events.push_back(std::move(event));
    return {};
  }

  CrashRecorder& recorder_;
  CrashRecorder::File& file_;
  const std::string name_;
};

CrashRecorder::CrashRecorder() = default;
CrashRecorder::~CrashRecorder() = default;

std::unique_ptr<Store> CrashRecorder::NewStore(const std::string& name, uint64_t size) {
  return Add(std::make_unique<MemoryStore>(size, MemoryStore::Options{.name = name}));
}

std::unique_ptr<Store> CrashRecorder::NewStore(const MemoryStore& initial) {
  return Add(initial.Clone());
}

std::unique_ptr<Store> CrashRecorder::Add(std::unique_ptr<MemoryStore> contents) {
  auto file = std::make_unique<File>();
  file->syncs.push_back({0, 0, contents->Clone()});
  file->now = std::move(contents);
  std::lock_guard lock(mutex_);
  files_.push_back(std::move(file));
  return std::make_unique<CrashStore>(*this, *files_.back());
}

uint64_t CrashRecorder::boundary() const {
  std::lock_guard lock(mutex_);
  return boundary_;
}

namespace {

void CopySector(MemoryStore& from, MemoryStore& to, uint64_t sector) {
  std::byte bytes[kSector];
  CHECK(from.Read(sector * kSector, bytes).has_value());
  CHECK(to.Write(sector * kSector, bytes).has_value());
}

// Both stores are long enough for whole sectors. Copies those of `range` that are kept. Where both
// have holes there is nothing to do, so that zeroing terabytes costs what they hold.
void WriteBack(MemoryStore& cache, MemoryStore& disk, Range range, uint64_t event,
               const Fate& fate) {
  for (uint64_t at = RoundDown(range.offset, kSector); at < range.end();) {
    Store::Run a = *cache.FindRun(at), b = *disk.FindRun(at);
    if (!a.data && !b.data) {
      at += std::max(kSector, RoundDown(std::min(a.length, b.length), kSector));
      continue;
    }
    if (fate.Keeps(event, at / kSector)) CopySector(cache, disk, at / kSector);
    at += kSector;
  }
}

}  // namespace

// Replays the unsynced events into a page cache; after each one, the sectors of it that fate keeps
// are written from there to the disk.
std::unique_ptr<MemoryStore> CrashRecorder::Crash(uint64_t boundary, uint64_t seed,
                                                  size_t number) const {
  std::lock_guard lock(mutex_);
  CHECK(number < files_.size() && boundary <= boundary_);
  const File& file = *files_[number];
  auto last = std::ranges::upper_bound(file.syncs, boundary, {}, &File::Durable::boundary) - 1;
  auto first = file.events.begin() + static_cast<ptrdiff_t>(last->events);
  auto end = std::ranges::lower_bound(first, file.events.end(), boundary, {}, &Event::number);

  std::unique_ptr<MemoryStore> disk = last->contents->Clone();
  uint64_t length = *disk->Size(), longest = length, cache_length = length;
  for (auto event = first; event != end; ++event) longest = std::max(longest, event->range.end());
  // Data may be there before the length that shows it: the file is cut to length at the very end.
  const uint64_t room = RoundUp(longest, kSector);
  CHECK(disk->Resize(room).has_value());
  std::unique_ptr<MemoryStore> cache = disk->Clone();

  const Fate fate(seed, static_cast<uint64_t>(end - first));
  const uint64_t lengths = fate.Lengths();
  uint64_t index = 0;
  for (auto event = first; event != end; ++event, ++index) {
    Range range = event->range;
    if (event->kind == Event::kResize) {
      range = Range::FromTo(range.length, std::max(range.length, cache_length));
      cache_length = event->range.length;
      CHECK(cache->Zero(range, true).has_value());
      // A kept length that came after a cut has the cut behind it.
      if (index < lengths) CHECK(disk->Zero(range, true).has_value());
    } else {
      CHECK(event->Apply(*cache).has_value());
      cache_length = std::max(cache_length, range.end());
      if (event->kind != Event::kAllocate) WriteBack(*cache, *disk, range, index, fate);
    }
    if (index < lengths) length = cache_length;
  }
  CHECK(disk->Resize(length).has_value());
  return disk;
}

}  // namespace platter
