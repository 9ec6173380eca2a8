#include "formats/vmdk/vmdk_stream.h"

#include <algorithm>
#include <mutex>

#include "base/endian.h"
#include "base/math.h"
#include "formats/vmdk/vmdk_plan.h"

namespace platter::vmdk {

namespace {

constexpr uint64_t kHostLimit = kSector << 32;  // what entries can name: 2 TiB

MetadataMarker Marker(uint64_t sectors, MarkerType type) {
  MetadataMarker marker{};
  marker.sectors = sectors;
  marker.type = type;
  return marker;
}

// Puts bytes one after the other; each part begins on a sector.
class Tail {
 public:
  explicit Tail(uint64_t start) : start_(start) { Align(); }

  uint64_t Here() const { return start_ + bytes_.size(); }
  template <class T>
  void Add(const T& value) {
    ConstBytes bytes = AsBytes(value);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  void Align() { bytes_.resize(RoundUp(Here(), kSector) - start_); }
  // Writes what is there and goes on behind it.
  Result<> Write(Store& file) {
    TRY(file.Write(start_, ConstBytes(bytes_)));
    start_ = Here();
    bytes_.clear();
    return {};
  }

 private:
  uint64_t start_;
  std::vector<std::byte> bytes_;
};

// The header again, which now says where the directory is.
SparseHeader Footer(SparseGeometry geometry, uint64_t directory) {
  geometry.at_end = false;
  geometry.directory = directory;
  return BuildHeader(geometry);
}

}  // namespace

StreamWriter::StreamWriter(Store& file, const SparseGeometry& geometry)
    : file_(file), geometry_(geometry), next_(geometry.overhead) {}

Result<std::vector<uint64_t>> StreamWriter::Append(uint64_t first,
                                                   std::span<const uint32_t> sizes) {
  std::lock_guard lock(mutex_);
  std::vector<uint64_t> places;
  uint64_t next = next_;
  for (uint32_t size : sizes) {
    // The zeros behind the last grain come along.
    Tail tail(next);
    const uint64_t at = tail.Here(), end = at + sizeof(GrainMarker) + size;
    if (end > kHostLimit) {
      return Fail(Code::kNoSpace, "the stream would be larger than 2 TiB");
    }
    GrainMarker marker{};
    marker.sector = first++ * (geometry_.grain / kSector);
    marker.size = size;
    tail.Add(marker);
    TRY_AS(fmt::format("grain marker at {:#x}", at), tail.Write(file_));
    places.push_back(at + sizeof(GrainMarker));
    next = end;
  }
  next_ = next;
  finished_ = false;
  return places;
}

void StreamWriter::Publish(uint64_t number, uint64_t at) {
  std::lock_guard lock(mutex_);
  auto& table = tables_[number / geometry_.table_entries];
  table.resize(geometry_.table_entries);
  table[number % geometry_.table_entries] =
      static_cast<uint32_t>((at - sizeof(GrainMarker)) / kSector);
}

void StreamWriter::Drop(uint64_t at, uint32_t size) {
  std::lock_guard lock(mutex_);
  if (at + size == next_) {
    next_ = at - sizeof(GrainMarker);
  } else {
    broken_ = true;
  }
}

uint64_t StreamWriter::Entry(uint64_t number) const {
  std::lock_guard lock(mutex_);
  auto found = tables_.find(number / geometry_.table_entries);
  return found == tables_.end() ? 0 : found->second[number % geometry_.table_entries];
}

Result<> StreamWriter::Finish() {
  std::lock_guard lock(mutex_);
  if (finished_) return {};
  if (broken_) {
    return Fail(Code::kIo, "a grain of the stream was never written; the image is of no use");
  }
  uint64_t end = TRY(FinishLocked());
  if (!file_.caps().block_device) TRY(file_.Resize(end));
  TRY(file_.Sync());
  finished_ = true;
  return {};
}

Result<uint64_t> StreamWriter::FinishLocked() {
  Tail tail(next_);
  std::map<uint64_t, uint64_t> places;
  for (const auto& [number, table] : tables_) {
    tail.Add(Marker(RoundUp(geometry_.table_bytes(), kSector) / kSector, kMarkerTable));
    places[number] = tail.Here();
    for (uint32_t entry : table) tail.Add(le32(entry));
    tail.Align();
    TRY_AS("grain table", tail.Write(file_));
  }
  const uint64_t length = RoundUp(geometry_.directory_entries * sizeof(le32), kSector);
  tail.Add(Marker(length / kSector, kMarkerDirectory));
  const uint64_t directory = tail.Here();
  for (uint64_t i = 0; i < geometry_.directory_entries; ++i) {
    auto found = places.find(i);
    tail.Add(le32(found == places.end() ? 0 : static_cast<uint32_t>(found->second / kSector)));
  }
  tail.Align();
  tail.Add(Marker(1, kMarkerFooter));
  tail.Add(Footer(geometry_, directory));
  tail.Add(Marker(0, kMarkerEnd));
  if (tail.Here() > kHostLimit) return Fail(Code::kNoSpace, "the stream is larger than 2 TiB");
  TRY_AS("grain directory and footer", tail.Write(file_));
  return tail.Here();
}

}  // namespace platter::vmdk
