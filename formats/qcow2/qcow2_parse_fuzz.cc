// The parser against arbitrary bytes. The input is taken as the beginning of an image, and, where
// its header names tables inside of it, as those tables; else the tables are taken from byte 512
// on. Beside not crashing, what was parsed must be consistent in itself.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "formats/qcow2/qcow2_info.h"
#include "formats/qcow2/qcow2_parse.h"

namespace platter::qcow2 {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

ConstBytes TableAt(ConstBytes input, uint64_t offset) {
  if (offset >= input.size()) offset = std::min<uint64_t>(512, input.size());
  return input.subspan(offset);
}

// What is written back is read as the same, and writing that changes nothing any more.
void RoundTrip(const Header& header) {
  auto built = BuildHeader(header);
  if (!built.has_value()) {
    // Canonical extensions take a little more room than some that were parsed.
    Require(built.error().code() == Code::kOutOfRange);
    return;
  }
  auto again = ParseHeader(*built);
  Require(again.has_value());
  Header expected = header;
  expected.stale_bitmaps = false;  // not written back
  Require(*again == expected);
  auto rebuilt = BuildHeader(*again);
  Require(rebuilt.has_value() && *rebuilt == *built);
}

void Entries(const Header& header, ConstBytes input) {
  for (uint64_t at = 0; at + 16 <= std::min<uint64_t>(input.size(), 2048); at += 8) {
    uint64_t first = *LoadAt<be64>(input, at), second = *LoadAt<be64>(input, at + 8);
    if (auto table = DecodeL1(header, first, at)) Require(IsAligned(*table, header.cluster_size()));
    uint64_t guest = header.has_data_file() ? first & kOffsetMask : at << header.cluster_bits;
    auto cluster = DecodeL2(header, {first, header.extended_l2() ? second : 0}, guest);
    if (!cluster.has_value()) continue;
    Require((cluster->allocated & cluster->zero) == 0);
    if (cluster->kind == ClusterKind::kCompressedUnit) {
      Require(cluster->host < CompressedHostLimit(header) && cluster->length > 0);
      Require(cluster->length <= 2 * header.cluster_size());
      uint64_t length = std::min(cluster->length, header.cluster_size());
      if (!FitsIn(cluster->host, length, CompressedHostLimit(header))) continue;
      L2Entry encoded = EncodeCompressed(header, cluster->host, static_cast<uint32_t>(length));
      Require(DecodeL2(header, encoded, guest)->host == cluster->host);
    } else {
      Require(IsAligned(cluster->host, header.cluster_size()));
      Require(cluster->allocated == 0 || cluster->host != 0 || header.has_data_file());
    }
  }
}

void Tables(const Header& header, ConstBytes input) {
  uint64_t used = 0;
  ConstBytes table = TableAt(input, header.snapshots_offset);
  auto snapshots = ParseSnapshots(header, table, &used);
  if (snapshots.has_value()) {
    Require(snapshots->size() == header.snapshot_count && used <= table.size() + 7);
    for (const Snapshot& snapshot : *snapshots) {
      Require(header.l1_entries_for(snapshot.info.disk_size) <= snapshot.l1_size);
    }
  }
  auto bitmaps =
      ParseBitmaps(header, TableAt(input, header.bitmaps ? header.bitmaps->directory_offset : 0));
  if (snapshots.has_value() && bitmaps.has_value()) {
    Require(MakeInfo(header, *snapshots, *bitmaps).has_value());
  }
}

}  // namespace
}  // namespace platter::qcow2

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter::qcow2;
  platter::ConstBytes input = std::as_bytes(std::span(data, size));
  if (auto needed = HeaderBytesNeeded(input.first(std::min<size_t>(size, 32)))) {
    Require(*needed <= kMaxHeaderBytes);
  }
  auto header = ParseHeader(input);
  if (!header.has_value()) return 0;
  Require(header->l1_entries_for(header->size) <= header->l1_size);
  (void)CheckLayout(*header);
  RoundTrip(*header);
  Entries(*header, input);
  Tables(*header, input);
  // The same tables under a header that has everything, so that a plain input reaches them too.
  header->snapshot_count = std::max(header->snapshot_count, 2u);
  if (!header->bitmaps) header->bitmaps = Header::Bitmaps{2, std::min<uint64_t>(size, 256), 512};
  Tables(*header, input);
  return 0;
}
