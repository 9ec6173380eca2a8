#include "formats/qcow2/qcow2_check_image.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace platter::qcow2::check {

bool Image::PastEnd(Range range) const {
  auto end = CheckedAdd(range.offset, range.length);
  return !end || (*end > size && *end - size >= cluster_size());
}

Result<> Image::Read(uint64_t at, Bytes into) const {
  uint64_t there = at < size ? std::min<uint64_t>(size - at, into.size()) : 0;
  if (there > 0) TRY(store.Read(at, into.first(there)));
  if (there < into.size()) std::memset(into.data() + there, 0, into.size() - there);
  return {};
}

Result<Image> LoadImage(Store& store) {
  uint64_t size = TRY(store.Size());
  std::array<std::byte, 32> first{};
  uint64_t first_bytes = std::min<uint64_t>(size, first.size());
  TRY(store.Read(0, Bytes(first).first(first_bytes)));
  uint64_t wanted = TRY(HeaderBytesNeeded(Bytes(first).first(first_bytes)));
  std::vector<std::byte> head(std::min(wanted, size));
  TRY(store.Read(0, head));
  return Image{store, TRY(ParseHeader(head)), size};
}

bool Holes::Covers(Range range) {
  while (!range.empty() && range.offset < image_.size) {
    if (!run_.Contains(range.offset)) {
      auto run = image_.store.FindRun(range.offset);
      if (!run.has_value() || run->length == 0) return false;
      run_ = Range{range.offset, run->length};
      hole_ = !run->data;
    }
    if (!hole_) return false;
    if (run_.end() >= range.end()) return true;
    range = Range::FromTo(run_.end(), range.end());
  }
  return true;
}

Result<> ReadPieces(const Image& image, Range range, size_t piece,
                    const std::function<void(uint64_t at, ConstBytes bytes)>& visit) {
  range = range.Intersect(Range{0, RoundUp(image.size, 8)});
  Holes holes(image);
  std::vector<std::byte> buffer(std::min<uint64_t>(piece, range.length));
  while (!range.empty()) {
    Range part{range.offset, std::min<uint64_t>(range.length, buffer.size())};
    range = Range::FromTo(part.end(), range.end());
    if (holes.Covers(part)) continue;
    Bytes bytes = Bytes(buffer).first(part.length);
    TRY(image.Read(part.offset, bytes));
    visit(part.offset, bytes);
  }
  return {};
}

void Sweep(std::span<const Range> ranges,
           const std::function<void(Range segment, const std::set<uint32_t>& covering)>& visit) {
  struct Edge {
    uint64_t at;
    uint32_t index;
    bool begin;
  };
  std::vector<Edge> edges;
  edges.reserve(ranges.size() * 2);
  for (uint32_t i = 0; i < ranges.size(); ++i) {
    if (ranges[i].empty()) continue;
    edges.push_back({ranges[i].offset, i, true});
    edges.push_back({ranges[i].end(), i, false});
  }
  std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.at < b.at; });
  std::set<uint32_t> covering;
  uint64_t at = 0;
  for (const Edge& edge : edges) {
    if (edge.at > at && !covering.empty()) visit(Range::FromTo(at, edge.at), covering);
    at = edge.at;
    if (edge.begin) {
      covering.insert(edge.index);
    } else {
      covering.erase(edge.index);
    }
  }
}

}  // namespace platter::qcow2::check
