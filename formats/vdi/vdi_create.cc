// A new image: header | block map | host blocks, the last two at multiples of 4096. The host blocks
// of a fixed image are in the order of the disk.
#include "formats/vdi/vdi_create.h"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "formats/options.h"
#include "formats/preallocate.h"

namespace platter::vdi {
namespace {

constexpr uint64_t kAlignment = 4096;  // bytes: a page, and a sector of large-sectored disks
constexpr uint64_t kPiece = kMiB;      // bytes written at once
constexpr uint64_t kDefaultBlock = kMiB;

struct Plan {
  Header header;
  Preallocation preallocation = Preallocation::kOff;
  bool fixed() const { return header.type == ImageType::kFixed; }
  // Bytes of a file that holds `blocks` host blocks.
  uint64_t FileSize(uint64_t blocks) const {
    return header.data_offset + blocks * header.block_size;
  }
};

Result<> PlanType(const CreateOptions& options, Plan& plan) {
  auto subformat = TRY(ChoiceOption(options.options, "subformat", {"dynamic", "fixed"}));
  auto is_static = TRY(BoolOption(options.options, "static"));
  plan.preallocation = TRY(PreallocationOption(
      options.options, {Preallocation::kMetadata, Preallocation::kFalloc, Preallocation::kFull}));
  const bool fixed =
      subformat == 1 || is_static.value_or(false) || plan.preallocation != Preallocation::kOff;
  if (fixed && (subformat == 0 || is_static == false)) {
    return Fail(Code::kUnsupported,
                "subformat, static and preallocation contradict one another: fixed or not?");
  }
  if (fixed && options.parent) {
    return Fail(Code::kUnsupported, "a fixed image holds everything itself: it has no parent");
  }
  plan.header.type = fixed            ? ImageType::kFixed
                     : options.parent ? ImageType::kDifferencing
                                      : ImageType::kDynamic;
  return {};
}

Result<> PlanBlocks(const CreateOptions& options, Header& header) {
  uint64_t usual = options.parent_file ? options.parent_file->info.unit : kDefaultBlock;
  uint64_t block = TRY(SizeOption(options.options, "block_size")).value_or(usual);
  // What a parent of somebody else's making has is good for its child.
  if ((!std::has_single_bit(block) && block != usual) || block < kSector || block > kGiB) {
    return Fail(Code::kUnsupported, "block_size {}: must be a power of two from 512 to 1G", block);
  }
  header.block_size = static_cast<uint32_t>(block);
  header.size = options.size;
  const uint64_t blocks = BlocksFor(header.size, header.block_size);
  header.map_offset = kAlignment;
  header.data_offset = RoundUp(kAlignment + blocks * 4, kAlignment);
  if (blocks >= kDiscarded || header.data_offset > UINT32_MAX) {
    return Fail(Code::kOutOfRange,
                "a disk of {} bytes is too large for blocks of {}: use a larger block_size",
                header.size, block);
  }
  header.blocks = static_cast<uint32_t>(blocks);
  return {};
}

// As VirtualBox makes it up for a disk of this size: 16 heads as long as that is enough.
Geometry LogicalGeometry(uint64_t size) {
  constexpr uint32_t kSectors = 63, kMostCylinders = 1024;
  for (uint32_t heads : {16, 32, 64, 128, 255}) {
    uint64_t cylinders = size / (uint64_t{kSector} * kSectors * heads);
    if (cylinders <= kMostCylinders || heads == 255) {
      return {static_cast<uint32_t>(std::min<uint64_t>(cylinders, kMostCylinders)), heads, kSectors,
              kSector};
    }
  }
  return {};
}

Result<Plan> PlanImage(const CreateOptions& options) {
  TRY(CheckOptionNames("vdi", options.options, kCreateOptions));
  Plan plan;
  Header& header = plan.header;
  TRY(PlanType(options, plan));
  if (options.parent) TRY(NameParent(options.parent_file, header));
  TRY(PlanBlocks(options, header));
  header.creator = "<<< Platter VirtualBox Disk Image >>>\n";
  header.has_logical_geometry = true;
  header.geometry.sector_size = kSector;
  header.logical_geometry = LogicalGeometry(header.size);
  header.id = MakeImageId(options, "vdi image");
  header.modification = MakeImageId(options, "vdi modification");
  if (plan.fixed()) header.allocated = header.blocks;
  return plan;
}

// Old contents go; new ones read as zeros.
Result<> Empty(Store& store, const Plan& plan) {
  const uint64_t end = plan.FileSize(plan.header.allocated);
  if (!store.caps().block_device) {
    TRY(store.Resize(0));
    return store.Resize(end);
  }
  uint64_t size = TRY(store.Size());
  if (size < end) {
    return Fail(Code::kNoSpace, "'{}' has {} bytes; the new image needs {}", store.name(), size,
                end);
  }
  return store.Zero({0, end}, /*may_unmap=*/plan.preallocation != Preallocation::kFull);
}

Result<> WriteMap(Store& store, const Plan& plan) {
  const uint64_t blocks = plan.header.blocks;
  std::vector<le32> piece(std::min<uint64_t>(blocks, kPiece / 4), le32(kFree));
  for (uint64_t first = 0; first < blocks; first += piece.size()) {
    std::span<le32> part(piece.data(), std::min<uint64_t>(piece.size(), blocks - first));
    for (size_t i = 0; plan.fixed() && i < part.size(); ++i) {
      part[i] = static_cast<uint32_t>(first + i);
    }
    TRY(store.Write(plan.header.map_offset + first * 4, std::as_bytes(part)));
  }
  return {};
}

}  // namespace

Result<> NameParent(const std::optional<ParentFile>& file, Header& header) {
  if (!file) {
    return Fail(Code::kUnsupported,
                "a VDI image records its parent's id: the parent has to be opened");
  }
  const Info& parent = file->info;
  if (parent.format != "vdi") {
    return Fail(Code::kUnsupported, "a VDI image can have no parent but in VDI; this one is {}",
                parent.format);
  }
  auto id = FromGuidText(parent.identity.id), version = FromGuidText(parent.identity.version);
  if (!id || !version) {
    return Fail(Code::kUnsupported, "the parent has no UUIDs by which it could be known");
  }
  header.parent_id = *id;
  header.parent_modification = *version;
  return {};
}

Result<> CreateVdi(Store& store, const CreateOptions& options) {
  const Plan plan = TRY(PlanImage(options));
  TRY(Empty(store, plan));
  TRY(WriteMap(store, plan));
  const Range data = Range::FromTo(plan.header.data_offset, plan.FileSize(plan.header.allocated));
  TRY(PreallocateBytes(store, data, plan.preallocation));
  TRY(store.Sync());
  TRY(store.Write(0, ConstBytes(BuildHeader(plan.header))));
  return store.Sync();
}

Result<MeasureResult> MeasureVdi(const CreateOptions& options, uint64_t /*allocated_bytes*/,
                                 std::span<const Range> data) {
  const Plan plan = TRY(PlanImage(options));
  const uint64_t unit = plan.header.block_size;
  uint64_t needed = 0, counted = 0;  // blocks; those below `counted` are
  for (const Range& range : data) {
    if (range.empty()) continue;
    uint64_t first = std::max(range.offset / unit, counted), end = DivideUp(range.end(), unit);
    if (end > first) needed += end - first;
    counted = std::max(counted, end);
  }
  MeasureResult result;
  result.fully_allocated = plan.FileSize(plan.header.blocks);
  result.required = plan.fixed() ? result.fully_allocated : plan.FileSize(needed);
  return result;
}

}  // namespace platter::vdi
