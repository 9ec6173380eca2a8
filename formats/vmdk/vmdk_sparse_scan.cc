// The look at a whole extent before it is written to for the first time.
//
// Nothing in the format says what is free: new grains and tables come from the end of the file. So
// what an entry names past the end, because the file was cut, would come to be somebody else's, and
// a grain that two entries name would change under one of them when the other is written. An extent
// of that kind is not written.
//
// Of grains it is remembered where in the file each begins: 4 bytes for each grain that the file
// has room for. Grains are as long as the steps, so one that overlaps another begins in the same
// step as it or in the next one.
#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "formats/vmdk/vmdk_sparse.h"

namespace platter::vmdk {
namespace {

constexpr uint64_t kMostSteps = uint64_t{1} << 25;  // 128 MiB; files of 2 TiB with grains of 64 KiB
constexpr uint64_t kPiece = 64 * kKiB;              // of a directory, read at once

class GrainScan {
 public:
  explicit GrainScan(const SparseExtent& extent)
      : extent_(extent), g_(extent.geometry()), file_(extent.file()) {}

  // Where the last grain or table ends; the file may end before it.
  Result<uint64_t> Run() {
    const uint64_t size = TRY(file_.Size()), steps = DivideUp(size, g_.grain) + 1;
    if (steps > kMostSteps) {
      return Fail(Code::kUnsupported, "{:#x} bytes of grains of {} are too many to write to", size,
                  g_.grain);
    }
    begins_.resize(steps);
    TRY_AS("grain directory", ReadDirectory(g_.directory, /*first=*/true));
    if (g_.redundant) {
      TRY_AS("redundant grain directory", ReadDirectory(*g_.redundant, /*first=*/false));
    }
    for (const auto* tables : {&first_, &redundant_}) {
      for (uint32_t sector : *tables) TRY(CheckTable(sector * kSector));
    }
    return end_;
  }

 private:
  Result<bool> InHole(Range place) {
    if (!hole_.Contains(place.offset)) {
      const Store::Run run = TRY(file_.FindRun(place.offset));
      hole_ = run.data ? Range{} : Range{place.offset, run.length};
    }
    return hole_.Contains(place.offset) && place.end() <= hole_.end();
  }

  Result<> ReadDirectory(uint64_t directory, bool first) {
    const uint64_t length = g_.directory_entries * g_.entry_size();
    std::vector<uint32_t>& tables = first ? first_ : redundant_;
    for (uint64_t at = 0; at < length; at += kPiece) {
      std::vector<std::byte> bytes(std::min(kPiece, length - at));
      if (TRY(InHole({directory + at, bytes.size()}))) continue;
      TRY(file_.Read(directory + at, Bytes(bytes)));
      for (uint64_t i = 0; i < bytes.size() / g_.entry_size(); ++i) {
        const uint64_t number = at / g_.entry_size() + i;
        uint64_t place =
            TRY_AS(fmt::format("entry {}", number), extent_.GoodTable(LoadEntry(g_, bytes, i)));
        if (place == 0) continue;
        tables.push_back(static_cast<uint32_t>(place / kSector));
        end_ = std::max(end_, place + g_.table_bytes());
        if (tables.size() > kMostSteps) return Fail(Code::kUnsupported, "too many grain tables");
        if (first) TRY(ReadTable(number, place));
      }
    }
    const uint64_t apart = DivideUp(g_.table_bytes(), kSector);
    std::ranges::sort(tables);
    for (size_t i = 1; i < tables.size(); ++i) {
      if (tables[i] - tables[i - 1] >= apart) continue;
      return Fail(Code::kCorrupt, "two entries name the grain table at {:#x}", tables[i] * kSector);
    }
    return {};
  }

  // What it says about grains past the end of the disk means nothing.
  Result<> ReadTable(uint64_t number, uint64_t place) {
    if (TRY(InHole({place, g_.table_bytes()}))) return {};
    std::vector<std::byte> bytes(g_.table_bytes());
    TRY(file_.Read(place, Bytes(bytes)));
    const uint64_t left = DivideUp(g_.capacity, g_.grain) - number * g_.table_entries;
    for (uint64_t i = 0; i < std::min<uint64_t>(left, g_.table_entries); ++i) {
      const uint64_t entry = LoadEntry(g_, bytes, i);
      if (entry == 0) continue;
      auto where = [&] { return fmt::format("table {}, entry {}", number, i); };
      Grain grain = TRY_AS(where(), extent_.GoodGrain(entry));
      if (grain.kind == Grain::kData) TRY_AS(where(), AddGrain(grain.host));
    }
    return {};
  }

  // Where a grain begins that does so in step `step`, if one does.
  std::optional<uint64_t> Begin(uint64_t step) const {
    if (step >= begins_.size() || begins_[step] == 0) return std::nullopt;
    return step * g_.grain + (begins_[step] - 1) * kSector;
  }

  // The first grain that has a byte of `place`.
  std::optional<uint64_t> FindGrain(Range place) const {
    const uint64_t first = place.offset / g_.grain;
    for (uint64_t step = first == 0 ? 0 : first - 1; step * g_.grain < place.end(); ++step) {
      auto begin = Begin(step);
      if (begin && Range{*begin, g_.grain}.Overlaps(place)) return begin;
    }
    return std::nullopt;
  }

  Result<> AddGrain(uint64_t host) {
    if (auto other = FindGrain({host, g_.grain})) {
      return Fail(Code::kCorrupt, "the grain at {:#x} overlaps the one at {:#x}", host, *other);
    }
    begins_[host / g_.grain] = static_cast<uint32_t>(host % g_.grain / kSector + 1);
    end_ = std::max(end_, host + g_.grain);
    return {};
  }

  Result<> CheckTable(uint64_t place) const {
    auto grain = FindGrain({place, g_.table_bytes()});
    if (!grain) return {};
    return Fail(Code::kCorrupt, "the grain at {:#x} overlaps the grain table at {:#x}", *grain,
                place);
  }

  const SparseExtent& extent_;
  const SparseGeometry& g_;
  Store& file_;
  std::vector<uint32_t> begins_;  // by step: 1 + the sector of the step where a grain begins, or 0
  std::vector<uint32_t> first_, redundant_;  // sectors of the tables
  Range hole_;                               // of the file: the last one that was found
  uint64_t end_ = 0;
};

}  // namespace

Result<> SparseExtent::PrepareFirstWrite() {
  if (geometry_.compressed() || geometry_.markers()) return {};
  const uint64_t end = TRY_AS("cannot be written", GrainScan(*this).Run());
  std::lock_guard lock(mutex_);
  // The last grain may be there in part: what it lacks is not free.
  used_end_ = std::max(used_end_, RoundUp(end, kSector));
  next_ = std::max(next_, used_end_);
  return {};
}

}  // namespace platter::vmdk
