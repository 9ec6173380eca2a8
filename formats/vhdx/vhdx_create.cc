// A new image, in file order:
//
//   header section | log | metadata | BAT | blocks (of a fixed image)
#include "formats/vhdx/vhdx_create.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "base/endian.h"
#include "formats/foreign_names.h"
#include "formats/new_identity.h"
#include "formats/options.h"
#include "formats/preallocate.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_parse.h"

namespace platter::vhdx {
namespace {

constexpr uint64_t kPiece = kMiB;    // bytes written at once
constexpr uint64_t kMostLog = kGiB;  // what we replay

struct Plan {
  Metadata metadata;
  BlockState empty = BlockState::kNotPresent;  // state of a block that holds nothing
  bool fixed = false;
  Preallocation preallocation = Preallocation::kOff;
  Range log, metadata_region, bat;
  uint64_t end = 0;  // of the file

  uint64_t data() const { return bat.end(); }
};

// As qemu-img chooses; what Hyper-V takes for differencing disks.
uint64_t DefaultBlock(uint64_t size, bool has_parent) {
  if (has_parent) return 2 * kMiB;
  if (size > 32 * kTiB) return 64 * kMiB;
  if (size > 100 * kGiB) return 32 * kMiB;
  return size > kGiB ? 16 * kMiB : 8 * kMiB;
}

Result<uint32_t> SectorOption(const CreateOptions& options, std::string_view name,
                              uint32_t otherwise) {
  uint64_t size = TRY(SizeOption(options.options, name)).value_or(otherwise);
  if (size == 512 || size == 4096) return static_cast<uint32_t>(size);
  return Fail(Code::kUnsupported, "{} {}: must be 512 or 4096", name, size);
}

Result<> PlanMetadata(const CreateOptions& options, Plan& plan) {
  Metadata& metadata = plan.metadata;
  metadata.has_parent = options.parent.has_value();
  if (metadata.has_parent) metadata.parent = TRY(LocatorOf(options.parent_file));
  if (plan.fixed && metadata.has_parent) {
    return Fail(Code::kUnsupported, "a fixed image holds everything itself: it has no parent");
  }
  const uint32_t sector = metadata.has_parent ? options.parent_file->info.sector : 512;
  metadata.logical_sector = TRY(SectorOption(options, "logical_sector_size", sector));
  metadata.physical_sector = TRY(SectorOption(options, "physical_sector_size", 4096));
  if (metadata.has_parent && metadata.logical_sector != sector) {
    return Fail(Code::kUnsupported, "logical_sector_size {}: that of the parent is {}",
                metadata.logical_sector, sector);
  }
  const uint64_t size = options.size;
  if (size > kMostDiskSize) {
    return Fail(Code::kOutOfRange, "a disk of {} bytes; {} are the most", size, kMostDiskSize);
  }
  metadata.disk_size = RoundUp(size, metadata.logical_sector);
  uint64_t block = TRY(SizeOption(options.options, "block_size")).value_or(0);
  if (block == 0) block = DefaultBlock(size, metadata.has_parent);
  if (!std::has_single_bit(block) || block < kLeastBlock || block > kMostBlock) {
    return Fail(Code::kUnsupported, "block_size {}: must be a power of two from 1M to 256M", block);
  }
  metadata.block_size = static_cast<uint32_t>(block);
  metadata.leave_allocated = plan.fixed;
  metadata.page83 = MakeImageId(options, "page 83");
  return {};
}

Result<Plan> MakePlan(const CreateOptions& options) {
  TRY(CheckOptionNames("vhdx", options.options, kCreateOptions));
  Plan plan;
  auto subformat = TRY(ChoiceOption(options.options, "subformat", {"dynamic", "fixed"}));
  plan.preallocation =
      TRY(PreallocationOption(options.options, {Preallocation::kFalloc, Preallocation::kFull}));
  if (plan.preallocation != Preallocation::kOff && subformat == size_t{0}) {
    return Fail(Code::kUnsupported,
                "preallocation: a dynamic VHDX has blocks for what it holds only");
  }
  plan.fixed = subformat == size_t{1} || plan.preallocation != Preallocation::kOff;
  TRY(PlanMetadata(options, plan));
  bool zero = TRY(BoolOption(options.options, "block_state_zero")).value_or(true);
  if (zero && !plan.metadata.has_parent) plan.empty = BlockState::kZero;
  uint64_t log = TRY(SizeOption(options.options, "log_size")).value_or(0);
  if (log == 0) log = kMiB;
  if (!IsAligned(log, kAlign) || log > kMostLog) {
    return Fail(Code::kUnsupported, "log_size {}: must be a multiple of 1M, at most 1G", log);
  }
  plan.log = {kHeaderSection, log};
  plan.metadata_region = {plan.log.end(), kMiB};
  uint64_t entries = std::max<uint64_t>(plan.metadata.bat_entries(), 1);
  // QEMU takes the blocks of an empty disk for 2^32 - 1 and wants to see the entries of their
  // bitmaps. They are a hole of the file.
  if (plan.metadata.disk_size == 0) entries = UINT32_MAX / plan.metadata.chunk_ratio();
  plan.bat = {plan.metadata_region.end(), RoundUp(entries * 8, kAlign)};
  plan.end = plan.data();
  if (plan.fixed) plan.end += plan.metadata.blocks() * plan.metadata.block_size;
  return plan;
}

// Old contents go; everything reads as zeros afterwards.
Result<> Empty(Store& store, const Plan& plan) {
  if (!store.caps().block_device) {
    TRY(store.Resize(0));
    return store.Resize(plan.end);
  }
  uint64_t size = TRY(store.Size());
  if (size < plan.end) {
    return Fail(Code::kNoSpace, "'{}' has {} bytes; the new image needs {}", store.name(), size,
                plan.end);
  }
  return store.Zero(Range{0, plan.end}, /*may_unmap=*/true);
}

Result<> WriteBat(Store& store, const Plan& plan) {
  if (!plan.fixed && plan.empty == BlockState::kNotPresent) return {};
  const uint64_t entries = plan.metadata.bat_entries(), group = plan.metadata.chunk_ratio() + 1;
  std::vector<std::byte> piece;
  for (uint64_t index = 0; index < entries;) {
    uint64_t count = std::min(kPiece / 8, entries - index);
    piece.assign(count * 8, std::byte{0});
    for (uint64_t i = 0; i < count; ++i, ++index) {
      if (index % group == group - 1) continue;
      uint64_t block = index - index / group;
      BatEntry entry{plan.empty, 0};
      if (plan.fixed) {
        entry = {BlockState::kFullyPresent, plan.data() + block * plan.metadata.block_size};
      }
      StoreAt(Bytes(piece), i * 8, le64(EncodeEntry(entry)));
    }
    TRY(store.Write(plan.bat.offset + (index - count) * 8, ConstBytes(piece)));
  }
  return {};
}

std::vector<std::byte> BuildIdentifier() {
  FileIdentifierDisk identifier{};
  identifier.signature = kFileSignature;
  std::vector<std::byte> creator = ToUtf16("Platter", std::endian::little);
  std::ranges::copy(creator, identifier.creator.begin());
  ConstBytes bytes = AsBytes(identifier);
  return {bytes.begin(), bytes.end()};
}

}  // namespace

Result<ParentLocator> LocatorOf(const std::optional<ParentFile>& file) {
  if (!file) {
    return Fail(Code::kUnsupported,
                "a VHDX records which state of its parent it is made on, so the parent has to be "
                "there (no -u)");
  }
  if (file->info.format != "vhdx") {
    return Fail(Code::kUnsupported, "the parent of a VHDX is a VHDX; this one is {}",
                file->info.format);
  }
  auto windows = [](std::string path) {
    std::ranges::replace(path, '/', '\\');
    return path;
  };
  ParentLocator locator;
  locator.linkages = {file->info.identity.version};
  locator.entries = {
      {"parent_linkage", "{" + file->info.identity.version + "}"},
      {"relative_path", ToWindowsPath(file->relative)},
      {"absolute_win32_path", windows(file->path)},
  };
  for (const auto& [key, value] : locator.entries) {
    if (value.size() > 16 * kKiB) return Fail(Code::kUnsupported, "the parent's name is too long");
  }
  return locator;
}

Result<> CreateVhdx(Store& store, const CreateOptions& options) {
  const Plan plan = TRY(MakePlan(options));
  TRY(Empty(store, plan));
  const std::vector<Region> regions = {{kBatRegion, plan.bat, true},
                                       {kMetadataRegion, plan.metadata_region, true}};
  for (uint64_t at : kRegionTableOffsets) {
    TRY(store.Write(at, ConstBytes(BuildRegions(regions))));
  }
  TRY(store.Write(plan.metadata_region.offset, ConstBytes(BuildMetadata(plan.metadata))));
  TRY(WriteBat(store, plan));
  TRY(PreallocateBytes(store, Range::FromTo(plan.data(), plan.end), plan.preallocation));
  Header header;
  header.file_write = MakeImageId(options, "file write");
  header.data_write = MakeImageId(options, "data write");
  header.log = plan.log;
  for (uint64_t at : kHeaderOffsets) {
    ++header.sequence;
    TRY(store.Write(at, ConstBytes(BuildHeader(header))));
  }
  TRY(store.Sync());
  TRY(store.Write(0, ConstBytes(BuildIdentifier())));
  return store.Sync();
}

Result<MeasureResult> MeasureVhdx(const CreateOptions& options, uint64_t /*allocated_bytes*/,
                                  std::span<const Range> data) {
  const Plan plan = TRY(MakePlan(options));
  const uint64_t block = plan.metadata.block_size, size = plan.metadata.disk_size;
  const uint64_t chunk = plan.metadata.chunk_ratio() * block;
  uint64_t blocks = 0, bitmaps = 0, counted_to = 0, chunks_to = 0;
  for (const Range& range : data) {
    uint64_t end = std::min(range.end(), size), first = std::max(range.offset, counted_to);
    if (range.empty() || end <= first) continue;
    counted_to = RoundUp(end, block);
    blocks += (counted_to - RoundDown(first, block)) / block;
    first = std::max(RoundDown(first, chunk), chunks_to);
    if (!plan.metadata.has_parent || RoundUp(end, chunk) <= first) continue;
    chunks_to = RoundUp(end, chunk);
    bitmaps += (chunks_to - first) / chunk;
  }
  MeasureResult result;
  const uint64_t all = plan.metadata.blocks() * block;
  const uint64_t all_bitmaps = plan.metadata.has_parent ? DivideUp(size, chunk) * kMiB : 0;
  result.fully_allocated = plan.data() + all + all_bitmaps;
  result.required = plan.data() + (plan.fixed ? all : blocks * block + bitmaps * kMiB);
  return result;
}

}  // namespace platter::vhdx
