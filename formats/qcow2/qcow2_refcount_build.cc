#include "formats/qcow2/qcow2_refcount_build.h"

#include <algorithm>
#include <vector>

namespace platter::qcow2::check {

namespace {

uint64_t PerBlock(const Header& header, uint32_t order) {
  return header.cluster_size() * 8 >> order;
}

}  // namespace

Result<NewRefcounts> PlanRefcounts(const Header& header, uint32_t order, uint64_t start,
                                   std::set<uint64_t> indices) {
  NewRefcounts place{.start = start, .indices = std::move(indices)};
  const uint64_t per_block = PerBlock(header, order);
  // Blocks and table need refcounts themselves; that settles after a few rounds.
  uint64_t end = 0;
  do {
    end = place.end();
    for (uint64_t cluster = start; cluster < std::max(end, start + 1);
         cluster = RoundDown(cluster, per_block) + per_block) {
      place.indices.insert(cluster / per_block);
    }
    place.table = start + place.indices.size();
    place.table_clusters = DivideUp((*place.indices.rbegin() + 1) * 8, header.cluster_size());
    if (place.table_clusters << header.cluster_bits > kMaxRefcountTableBytes) {
      return Fail(Code::kUnsupported, "the file is too large for clusters of {} bytes",
                  header.cluster_size());
    }
  } while (end != place.end());
  return place;
}

Result<> WriteNewRefcounts(Store& store, const Header& header, uint32_t order,
                           const NewRefcounts& place,
                           const std::function<Result<uint64_t>(uint64_t cluster)>& count) {
  const uint64_t per_block = PerBlock(header, order);
  const uint64_t most = order >= 6 ? ~uint64_t{0} : (uint64_t{1} << (1u << order)) - 1;
  std::vector<std::byte> block(header.cluster_size());
  std::vector<std::byte> table(place.table_clusters << header.cluster_bits);
  uint64_t at = place.start << header.cluster_bits;
  for (uint64_t index : place.indices) {
    std::ranges::fill(block, std::byte{0});
    for (uint64_t slot = 0; slot < per_block; ++slot) {
      const uint64_t cluster = index * per_block + slot;
      const uint64_t wanted = place.Holds(cluster) ? 1 : TRY(count(cluster));
      if (wanted != 0) StoreRefcount(block, order, slot, std::min(wanted, most));
    }
    TRY(store.Write(at, ConstBytes(block)));
    StoreAt(Bytes(table), index * 8, be64(at));
    at += header.cluster_size();
  }
  TRY(store.Write(at, ConstBytes(table)));
  return store.Sync();
}

}  // namespace platter::qcow2::check
