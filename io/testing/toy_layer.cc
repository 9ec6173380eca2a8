#include "io/testing/toy_layer.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/endian.h"

namespace platter {
namespace {

constexpr uint32_t kSector = Cipher::kSector;

struct DiskHeader {
  le64 magic, generation, checksum;  // of generation and entries
};
struct DiskEntry {
  le64 host;
  le32 length;
  uint8_t kind, packed, reserved[2];
};
constexpr uint64_t kMagic = 0x31796f7472746c70;
static_assert(sizeof(DiskHeader) == 24 && sizeof(DiskEntry) == 16);

uint64_t Checksum(uint64_t generation, ConstBytes entries) {
  uint64_t sum = 0xcbf29ce484222325 ^ generation;
  for (std::byte b : entries) sum = (sum ^ static_cast<uint64_t>(b)) * 0x100000001b3;
  return sum;
}

}  // namespace

// What Reserve and ReservePacked return. The guard is the first member, so that it goes last: the
// space of a dropped reservation is free before the next writer of its clusters looks for some.
struct ToyLayer::Claim final : Reservation {
  Claim(ToyLayer& owner, RangeLock::Guard held) : guard(std::move(held)), layer(owner) {}
  ~Claim() override {
    std::lock_guard lock(layer.mutex_);
    for (auto& [index, entry] : entries) layer.DropLocked(entry, /*quarantine=*/false);
  }
  Range range() const override { return given; }
  std::span<const Extent> target() const override { return targets; }
  std::span<const Range> fill() const override { return fills; }
  Result<> Publish() override {
    CHECK(!std::exchange(published, true));
    std::lock_guard lock(layer.mutex_);
    PublishLocked();
    return {};
  }
  void PublishLocked() {
    for (auto& [index, entry] : entries) {
      layer.DropLocked(std::exchange(layer.table_[index], entry), /*quarantine=*/true);
    }
    entries.clear();
  }

  RangeLock::Guard guard;
  ToyLayer& layer;
  Range given;
  std::vector<Extent> targets;
  std::vector<Range> fills;
  std::vector<std::pair<size_t, Entry>> entries;  // what Publish puts into the table
  bool published = false;
};

ToyLayer::ToyLayer(Store& store, const Options& options)
    : store_(store), options_(options), table_(DivideUp(options.size, options.cluster)) {
  info_.format = "toy";
  info_.size = options.size;
  info_.unit = options.cluster;
  info_.writable = store.writable();
  info_.encrypted = options.cipher != nullptr;
  info_.compressed_units = options.compression != Codec::kNone;
  if (options.compression == Codec::kDeflate) info_.compression = "deflate";
  if (options.compression == Codec::kZstd) info_.compression = "zstd";
  if (options.has_parent) {
    for (Entry& entry : table_) entry.kind = Kind::kParent;
  }
}

uint64_t ToyLayer::slot_size() const {
  return RoundUp(sizeof(DiskHeader) + table_.size() * sizeof(DiskEntry), 4096);
}

Result<> ToyLayer::Create(Store& store, const Options& options) {
  ToyLayer layer(store, options);
  TRY(store.Zero({0, 2 * layer.slot_size()}, /*may_unmap=*/false));
  return layer.Flush();
}

Result<std::unique_ptr<ToyLayer>> ToyLayer::Open(Store& store, const Options& options) {
  std::unique_ptr<ToyLayer> layer(new ToyLayer(store, options));
  TRY_AS("toy", layer->Load());
  return layer;
}

Result<> ToyLayer::Load() {
  std::vector<std::byte> slot(slot_size());
  std::vector<std::byte> best;
  for (uint64_t at : {uint64_t{0}, slot_size()}) {
    TRY(store_.Read(at, Bytes(slot)));
    auto header = *LoadAt<DiskHeader>(slot, 0);
    if (header.magic != kMagic || header.generation <= generation_) continue;
    if (Checksum(header.generation, ConstBytes(slot).subspan(sizeof header)) != header.checksum) {
      continue;
    }
    generation_ = snapshot_ = header.generation;
    best = slot;
  }
  if (best.empty()) return Fail(Code::kCorrupt, "neither table is whole");
  for (size_t i = 0; i < table_.size(); ++i) {
    auto disk = *LoadAt<DiskEntry>(best, sizeof(DiskHeader) + i * sizeof(DiskEntry));
    table_[i] = {static_cast<Kind>(disk.kind), disk.packed != 0, disk.length, disk.host};
    if (table_[i].kind == Kind::kData) UseLocked(table_[i]);
  }
  return {};
}

Result<bool> ToyLayer::Check(Store& store, const Options& options) {
  ToyLayer layer(store, options);
  TRY(layer.Load());
  uint64_t size = TRY(store.Size());
  std::vector<Range> used;
  for (const Entry& entry : layer.table_) {
    if (entry.kind == Kind::kData) used.push_back({entry.host, entry.length});
  }
  std::ranges::sort(used, {}, &Range::offset);
  for (size_t i = 0; i < used.size(); ++i) {
    if (used[i].offset < 2 * layer.slot_size() || used[i].offset >= size) return false;
    if (i > 0 && used[i - 1].Overlaps(used[i])) return false;
  }
  return true;
}

uint64_t ToyLayer::used_clusters() {
  std::lock_guard lock(mutex_);
  return std::ranges::count_if(uses_, [](uint32_t n) { return n != 0 && n != kQuarantined; });
}

Result<> ToyLayer::CheckRange(Range want) const {
  if (want.empty() || !FitsIn(want.offset, want.length, info_.size)) {
    return Fail(Code::kOutOfRange, "toy: {:#x}+{:#x} is not inside a disk of {:#x} bytes",
                want.offset, want.length, info_.size);
  }
  return {};
}

// ---- Mapping ----

// What `part` of guest cluster `index` means. Under mutex_.
Extent ToyLayer::Describe(size_t index, Range part) const {
  const Entry& entry = table_[index];
  Extent extent;
  extent.guest = part;
  extent.kind = entry.kind;
  if (entry.kind != Kind::kData) return extent;
  uint64_t skip = part.offset - index * options_.cluster;
  extent.store = &store_;
  if (entry.packed) {
    extent.host = {entry.host, entry.length};
    extent.codec = {
        .id = options_.compression, .unit = options_.cluster, .skip = static_cast<uint32_t>(skip)};
  } else {
    extent.host = {entry.host + skip, part.length};
    extent.codec.cipher = options_.cipher;
    extent.writable = !options_.cipher && info_.writable;
  }
  return extent;
}

size_t ToyLayer::TryMap(Range want, std::span<Extent> out) {
  if (!CheckRange(want)) return 0;
  std::lock_guard lock(mutex_);
  size_t count = 0;
  for (uint64_t at = want.offset; at < want.end();) {
    size_t index = at / options_.cluster;
    Range cluster{index * options_.cluster, options_.cluster};
    Extent next = Describe(index, cluster.Intersect(want));
    at = next.guest.end();
    Extent* last = count > 0 ? &out[count - 1] : nullptr;
    bool continues = last && last->kind == next.kind && !last->packed() && !next.packed() &&
                     (next.kind != Kind::kData || last->host.end() == next.host.offset);
    if (continues) {
      last->guest.length += next.guest.length;
      last->host.length += next.host.length;
    } else if (count < out.size()) {
      out[count++] = next;
    } else {
      break;
    }
  }
  return count;
}

Result<size_t> ToyLayer::Map(Range want, std::span<Extent> out) {
  TRY(CheckRange(want));
  return TryMap(want, out);
}

// ---- Host space ----

// First fit of contiguous host clusters, at the end where nothing fits. Each comes with no uses.
Result<uint64_t> ToyLayer::AllocateLocked(uint64_t bytes) {
  std::erase_if(freed_, [&](const Freed& freed) {
    bool safe = options_.broken == Break::kNoQuarantine ||
                (freed.generation <= generation_ && pins_.Reached(freed.epoch));
    if (safe) uses_[freed.index] = 0;
    return safe;
  });
  size_t count = DivideUp(bytes, options_.cluster), run = 0, first = 0;
  for (size_t i = 0; run < count; ++i) {
    if (i == uses_.size()) {
      if (options_.host_limit != 0 && i == options_.host_limit) {
        return Fail(Code::kNoSpace, "toy: all {} host clusters are used", options_.host_limit);
      }
      uses_.push_back(0);
    }
    run = uses_[i] == 0 ? run + 1 : 0;
    if (run == 1) first = i;
  }
  return 2 * slot_size() + first * options_.cluster;
}

void ToyLayer::UseLocked(const Entry& entry) {
  uint64_t base = 2 * slot_size();
  for (uint64_t i = (entry.host - base) / options_.cluster;
       base + i * options_.cluster < entry.host + entry.length; ++i) {
    if (i >= uses_.size()) uses_.resize(i + 1);
    ++uses_[i];
  }
}

// Space that a table named waits in quarantine, for readers and for the table to be durable.
void ToyLayer::DropLocked(const Entry& entry, bool quarantine) {
  if (entry.kind != Kind::kData) return;
  uint64_t base = 2 * slot_size();
  for (uint64_t i = (entry.host - base) / options_.cluster;
       base + i * options_.cluster < entry.host + entry.length; ++i) {
    if (--uses_[i] != 0 || !quarantine) continue;
    uses_[i] = kQuarantined;
    freed_.push_back({i, pins_.Now(), snapshot_ + 1});
  }
}

// ---- Reservations ----

Result<std::unique_ptr<Reservation>> ToyLayer::Reserve(Range want) {
  TRY(CheckRange(want));
  if (!info_.writable) return Fail(Code::kReadOnly, "toy: opened for reading");
  uint64_t limit = RoundDown(want.offset, options_.cluster) +
                   uint64_t{options_.reserve_limit} * options_.cluster;
  want = Range::FromTo(want.offset, std::min(want.end(), limit));
  Range clusters = want.Outward(options_.cluster);
  RangeLock::Guard guard;
  if (options_.broken != Break::kNoWait) guard = ranges_.Lock(clusters);

  auto claim = std::make_unique<Claim>(*this, std::move(guard));
  std::unique_lock lock(mutex_);
  // The claim's destructor takes mutex_.
  if (auto placed = PlaceLocked(*claim, want, clusters); !placed) {
    lock.unlock();
    return std::unexpected(std::move(placed.error()));
  }
  if (options_.broken == Break::kPublishEarly) claim->PublishLocked();
  return claim;
}

// The longest prefix of `want` that is all in place or all new.
Result<> ToyLayer::PlaceLocked(Claim& claim, Range want, Range clusters) {
  auto in_place = [&](uint64_t at) {
    const Entry& entry = table_[at / options_.cluster];
    return entry.kind == Kind::kData && !entry.packed;
  };
  uint64_t end = clusters.offset + options_.cluster;
  while (end < clusters.end() && in_place(end) == in_place(want.offset)) end += options_.cluster;
  claim.given = want.Intersect(Range::FromTo(clusters.offset, end));
  if (in_place(want.offset)) {
    PlaceInPlaceLocked(claim, claim.given);
    return {};
  }
  Range whole = Range::FromTo(clusters.offset, std::min(end, info_.size));
  uint64_t host = TRY(AllocateLocked(whole.length));
  claim.targets.push_back({.guest = whole,
                           .kind = Kind::kData,
                           .store = &store_,
                           .host = {host, whole.length},
                           .codec = {.cipher = options_.cipher}});
  for (uint64_t at = whole.offset; at < whole.end(); at += options_.cluster) {
    Entry entry{Kind::kData, false, options_.cluster, host + (at - whole.offset)};
    UseLocked(entry);
    claim.entries.emplace_back(at / options_.cluster, entry);
  }
  Range head = Range::FromTo(whole.offset, claim.given.offset);
  Range tail = Range::FromTo(claim.given.end(), whole.end());
  if (!head.empty()) claim.fills.push_back(head);
  if (!tail.empty()) claim.fills.push_back(tail);
  return {};
}

// Encrypted sectors are written whole: the rest of the first and last one is fill.
void ToyLayer::PlaceInPlaceLocked(Claim& claim, Range want) {
  Range whole = options_.cipher ? want.Outward(kSector) : want;
  for (uint64_t at = whole.offset; at < whole.end();) {
    Range cluster{RoundDown(at, options_.cluster), options_.cluster};
    Extent next = Describe(at / options_.cluster, cluster.Intersect(whole));
    next.writable = false;
    claim.targets.push_back(next);
    at = next.guest.end();
  }
  Range head = Range::FromTo(whole.offset, want.offset),
        tail = Range::FromTo(want.end(), whole.end());
  if (!head.empty()) claim.fills.push_back(head);
  if (!tail.empty()) claim.fills.push_back(tail);
}

Result<std::unique_ptr<Reservation>> ToyLayer::ReservePacked(Range units,
                                                             std::span<const uint32_t> sizes) {
  TRY(CheckRange(units));
  if (!info_.writable) return Fail(Code::kReadOnly, "toy: opened for reading");
  if (!info_.compressed_units) return Layer::ReservePacked(units, sizes);
  CHECK(IsAligned(units.offset, options_.cluster));
  CHECK(sizes.size() == DivideUp(units.length, options_.cluster));
  sizes = sizes.first(std::min<size_t>(sizes.size(), options_.reserve_limit));
  units = units.Intersect({units.offset, sizes.size() * options_.cluster});

  auto claim = std::make_unique<Claim>(*this, ranges_.Lock(units.Outward(options_.cluster)));
  claim->given = units;
  uint64_t total = 0;
  for (uint32_t size : sizes) total += size;
  std::unique_lock lock(mutex_);
  auto host = AllocateLocked(total);
  if (!host) {
    lock.unlock();
    return std::unexpected(std::move(host.error()));
  }
  uint64_t at = units.offset, to = *host;
  for (uint32_t size : sizes) {
    claim->targets.push_back({.guest = Range{at, options_.cluster}.Intersect(units),
                              .kind = Kind::kData,
                              .store = &store_,
                              .host = {to, size},
                              .codec = {.id = options_.compression, .unit = options_.cluster}});
    Entry entry{Kind::kData, true, size, to};
    UseLocked(entry);
    claim->entries.emplace_back(at / options_.cluster, entry);
    at += options_.cluster;
    to += size;
  }
  return claim;
}

Result<Range> ToyLayer::Discard(Range want, Kind leave) {
  TRY(CheckRange(want));
  CHECK(leave != Kind::kData);
  if (!info_.writable) return Fail(Code::kReadOnly, "toy: opened for reading");
  if (leave == Kind::kHole && options_.has_parent) leave = Kind::kZero;
  // The last cluster counts as whole where the disk ends inside it.
  Range outward = want.end() == info_.size
                      ? Range::FromTo(want.offset, RoundUp(want.end(), options_.cluster))
                      : want;
  Range clusters = outward.Inward(options_.cluster);
  if (clusters.empty()) return Range{want.offset, 0};
  RangeLock::Guard guard;
  if (options_.broken != Break::kNoWait) guard = ranges_.Lock(clusters);
  std::lock_guard lock(mutex_);
  for (uint64_t at = clusters.offset; at < clusters.end(); at += options_.cluster) {
    DropLocked(std::exchange(table_[at / options_.cluster], Entry{.kind = leave}), true);
  }
  return clusters.Intersect(want);
}

// ---- Flush ----

Result<> ToyLayer::Flush() {
  std::lock_guard one(flush_mutex_);
  std::vector<std::byte> slot(slot_size());
  uint64_t generation = 0;
  {
    std::lock_guard lock(mutex_);
    generation = snapshot_ = generation_ + 1;
    for (size_t i = 0; i < table_.size(); ++i) {
      const Entry& entry = table_[i];
      StoreAt(
          Bytes(slot), sizeof(DiskHeader) + i * sizeof(DiskEntry),
          DiskEntry{entry.host, entry.length, static_cast<uint8_t>(entry.kind), entry.packed, {}});
    }
  }
  DiskHeader header{kMagic, generation,
                    Checksum(generation, ConstBytes(slot).subspan(sizeof(DiskHeader)))};
  StoreAt(Bytes(slot), 0, header);
  if (options_.broken != Break::kNoBarrier) TRY(store_.Sync());
  TRY(store_.Write(generation % 2 * slot_size(), ConstBytes(slot)));
  TRY(store_.Sync());
  std::lock_guard lock(mutex_);
  generation_ = generation;
  return {};
}

}  // namespace platter
