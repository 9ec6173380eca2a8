// What an image will weigh, added up as qemu-img measure does: the metadata of the fully allocated
// image in any case, plus the clusters that hold data. An upper bound for `required`, exact for
// `fully allocated`.
#include <algorithm>

#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_crypto.h"
#include "formats/qcow2/qcow2_plan.h"

namespace platter::qcow2 {
namespace {

// Bytes of the clusters that `data` touches.
uint64_t ClustersTouched(std::span<const Range> data, uint64_t cluster_size, uint64_t disk_size) {
  uint64_t bytes = 0, counted_to = 0;
  for (const Range& range : data) {
    uint64_t end = std::min(range.end(), disk_size);
    uint64_t first = std::max(RoundDown(range.offset, cluster_size), counted_to);
    if (range.empty() || end <= first) continue;
    counted_to = RoundUp(end, cluster_size);
    bytes += counted_to - first;
  }
  return bytes;
}

}  // namespace

Result<MeasureResult> MeasureQcow2(const CreateOptions& options, uint64_t /*allocated_bytes*/,
                                   std::span<const Range> data) {
  ImagePlan plan = TRY(PlanImage(options));
  const Header& header = plan.header;
  uint64_t cluster_size = header.cluster_size();
  uint64_t disk = RoundUp(header.size, cluster_size);
  uint64_t luks = RoundUp((plan.luks ? LuksAreaBytes(*plan.luks) : 0), cluster_size);
  // Without `mapped` clusters there is no limit to meet: an image that cannot be counted whole can
  // still be used in part. So the sums are made here and not by LayOut.
  uint64_t metadata = cluster_size +
                      DivideUp(disk / cluster_size, header.l2_entries()) * cluster_size +
                      RoundUp(header.l1_entries_for(header.size) * 8, cluster_size);
  RefcountClusters refcounts = RefcountClustersFor(header, (metadata + disk) / cluster_size);
  metadata += (refcounts.table + refcounts.blocks) * cluster_size + luks;

  MeasureResult result;
  result.fully_allocated = metadata + disk;
  // With falloc and full everything is there from the start.
  bool all =
      plan.preallocation == Preallocation::kFalloc || plan.preallocation == Preallocation::kFull;
  result.required = metadata + (all ? disk : ClustersTouched(data, cluster_size, header.size));
  return result;
}

}  // namespace platter::qcow2
