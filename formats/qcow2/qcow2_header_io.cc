#include "formats/qcow2/qcow2_header_io.h"

#include <algorithm>
#include <array>

namespace platter::qcow2 {
namespace {

// The sectors of `now` that differ from what the file has. Zeros that the file does not reach need
// not be there.
std::vector<uint64_t> ChangedSectors(ConstBytes before, ConstBytes now) {
  std::vector<uint64_t> changed;
  for (uint64_t at = 0; at < now.size(); at += kSector) {
    ConstBytes sector = now.subspan(at, kSector);
    const bool there = at + kSector <= before.size();
    if (there && std::ranges::equal(sector, before.subspan(at, kSector))) continue;
    if (at >= before.size() && IsZero(sector)) continue;
    changed.push_back(at);
  }
  return changed;
}

// The first sector of `header`, its backing name at a place of its own: where it is already, or
// where it is written now.
Result<std::vector<std::byte>> FirstSectorBesideName(Store& file, ConstBytes before,
                                                     const Header& header) {
  ConstBytes name = AsBytes(std::string_view(header.backing_name));
  auto old = TRY(NamePlace(before));
  const bool there = old.offset >= kSector && old.length == name.size() &&
                     std::ranges::equal(before.subspan(old.offset, old.length), name);
  const uint64_t at = there ? old.offset : TRY(FindRoomForName(before, name.size()));
  auto sector = TRY(BuildFirstSector(header, at));
  if (!there) {
    TRY_AS("backing file name", file.Write(at, name));
    TRY(file.Sync());
  }
  return sector;
}

}  // namespace

Result<std::vector<std::byte>> ReadFirstCluster(Store& file) {
  const uint64_t size = TRY(file.Size());
  std::array<std::byte, 32> first{};
  if (size < first.size()) return Fail(Code::kCorrupt, "a file of {} bytes has no header", size);
  TRY_AS("header", file.Read(0, Bytes(first)));
  std::vector<std::byte> head(std::min(size, TRY(HeaderBytesNeeded(first))));
  TRY_AS("header", file.Read(0, Bytes(head)));
  return head;
}

Result<Header> ReadHeader(Store& file) { return ParseHeader(TRY(ReadFirstCluster(file))); }

Result<> PutHeader(Store& file, const Header& header) {
  const std::vector<std::byte> before = TRY(ReadFirstCluster(file));
  auto whole = BuildHeader(header);
  std::vector<uint64_t> changed;
  if (whole) changed = ChangedSectors(before, *whole);
  auto put = [&](ConstBytes bytes, uint64_t at) -> Result<> {
    TRY_AS("header", file.Write(at, bytes.subspan(at, kSector)));
    return {};
  };
  if (whole && (changed.empty() || changed.back() == 0)) {
    return changed.empty() ? Result<>() : put(*whole, 0);
  }
  auto first = BuildFirstSector(header, std::nullopt);
  if (!first && header.has_backing) first = FirstSectorBesideName(file, before, header);
  if (first) return put(*first, 0);
  if (!whole) return std::unexpected(std::move(whole.error()));
  if (first.error().code() != Code::kOutOfRange) return std::unexpected(std::move(first.error()));
  for (uint64_t at : changed) TRY(put(*whole, at));
  return {};
}

}  // namespace platter::qcow2
