// A new image, in file order:
//
//   fixed      data | footer
//   others     footer (copy) | header | table | parent locators | footer
//
// The footers are written last, after a Sync: what an interrupted creation leaves is not an image.
#include "formats/vhd/vhd_create.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <vector>

#include "formats/options.h"
#include "formats/preallocate.h"
#include "formats/vhd/vhd_fixed.h"
#include "formats/vhd/vhd_parent.h"

namespace platter::vhd {
namespace {

constexpr uint64_t kHeaderAt = kSector, kTableAt = kHeaderAt + sizeof(DiskHeader);
constexpr uint32_t kDefaultBlock = 2u << 20;
constexpr uint64_t kAlign = 4096;  // bytes: where the data of blocks begins, see vhd_alloc.h

// What the options ask for.
struct Plan {
  DiskType type = DiskType::kDynamic;
  uint64_t size = 0;  // bytes
  uint32_t block_size = kDefaultBlock;
  Preallocation preallocation = Preallocation::kOff;

  uint64_t blocks() const { return DivideUp(size, block_size); }
};

// The size that all readers agree on whichever of the two they take: that of a geometry, the next
// one that is not smaller. There is none for large disks, whose geometry says "more".
uint64_t RoundToGeometry(uint64_t size) {
  for (uint64_t at = size;; at += kSector) {
    uint64_t bytes = GeometryOf(at).bytes();
    if (bytes >= kMostGeometry) return size;
    if (bytes >= size) return bytes;
  }
}

Result<Plan> MakePlan(const CreateOptions& options) {
  TRY(CheckOptionNames("vpc", options.options, kCreateOptions));
  Plan plan;
  auto subformat = TRY(ChoiceOption(options.options, "subformat", {"dynamic", "fixed"}));
  if (subformat == 1) plan.type = DiskType::kFixed;
  auto block = TRY(SizeOption(options.options, "block_size"));
  if (block && (*block < kLeastBlock || *block > kMostBlock || !std::has_single_bit(*block))) {
    return Fail(Code::kUnsupported, "block_size {}: must be a power of two from 4K to 256M",
                *block);
  }
  if (block && plan.type == DiskType::kFixed) {
    return Fail(Code::kUnsupported, "block_size: a fixed VHD has no blocks");
  }
  plan.block_size = static_cast<uint32_t>(block.value_or(kDefaultBlock));
  plan.preallocation =
      TRY(PreallocationOption(options.options, {Preallocation::kFalloc, Preallocation::kFull}));
  if (plan.preallocation != Preallocation::kOff && plan.type != DiskType::kFixed) {
    return Fail(Code::kUnsupported, "preallocation: only a fixed VHD has its data in place");
  }
  if (options.size > kMostSize) TRY(CheckSize(options.size));
  plan.size = RoundUp(options.size, kSector);
  bool exact = TRY(BoolOption(options.options, "force_size")).value_or(false);
  if (options.parent) {
    if (subformat) {
      return Fail(Code::kUnsupported, "subformat: a VHD with a parent is a differencing one");
    }
    plan.type = DiskType::kDifferencing;
    exact = true;
  }
  if (!exact) plan.size = RoundToGeometry(plan.size);
  TRY(CheckSize(plan.size));
  return plan;
}

Footer NewFooter(const CreateOptions& options, const Plan& plan) {
  Footer footer;
  footer.data_offset = plan.type == DiskType::kFixed ? kNoOffset : kHeaderAt;
  int64_t now = CreationTime(options) - kEpoch;
  footer.timestamp = static_cast<uint32_t>(std::clamp<int64_t>(now, 0, UINT32_MAX));
  footer.creator = "plat";
  footer.creator_version = 0x00010000;
  footer.host_os = "Wi2k";  // one of the two that there are
  footer.original_size = footer.current_size = plan.size;
  footer.geometry = GeometryOf(plan.size);
  footer.type = plan.type;
  footer.id = MakeImageId(options, "vhd");
  MarkExact(footer);
  return footer;
}

class Creation {
 public:
  Creation(Store& store, const CreateOptions& options, const Plan& plan)
      : store_(store), options_(options), plan_(plan), footer_(NewFooter(options, plan)) {}

  Result<> Fixed() {
    const DiskFooter footer = EncodeFooter(footer_);
    TRY(Empty(plan_.size, plan_.size + kSector));
    TRY(PreallocateBytes(store_, {0, plan_.size}, plan_.preallocation));
    TRY(store_.Sync());
    TRY(store_.Write(plan_.size, AsBytes(footer)));
    return store_.Sync();
  }

  Result<> Dynamic() {
    Header header{.table_offset = kTableAt,
                  .table_entries = static_cast<uint32_t>(plan_.blocks()),
                  .block_size = plan_.block_size};
    std::optional<ParentRecord> parent;
    if (plan_.type == DiskType::kDifferencing) parent = TRY(RecordOf(options_.parent_file));
    uint64_t end = header.table().end();
    if (parent) end += parent->bytes();
    TRY(Empty(end, end + kSector));
    TRY(WriteTable(header.table()));
    TRY(WriteHeader(header, parent));
    TRY(store_.Sync());
    const DiskFooter footer = EncodeFooter(footer_);
    TRY(store_.Write(0, AsBytes(footer)));
    TRY(store_.Write(end, AsBytes(footer)));
    return store_.Sync();
  }

 private:
  // Old contents go. `metadata` bytes are written or have to be zeros.
  Result<> Empty(uint64_t metadata, uint64_t end) {
    if (!store_.caps().block_device) {
      TRY(store_.Resize(0));
      return store_.Resize(end);
    }
    uint64_t size = TRY(store_.Size());
    if (size < end) {
      return Fail(Code::kNoSpace, "'{}' has {} bytes; the new image needs {}", store_.name(), size,
                  end);
    }
    if (plan_.type == DiskType::kFixed && size != end) {
      return Fail(Code::kUnsupported,
                  "a fixed VHD ends with its footer: '{}' has {} bytes, and would need exactly {}",
                  store_.name(), size, end);
    }
    return store_.Zero({0, metadata}, /*may_unmap=*/true);
  }

  Result<> WriteTable(Range table) {
    std::vector<std::byte> unused(std::min(table.length, kMiB), std::byte{0xff});
    for (uint64_t at = 0; at < table.length; at += unused.size()) {
      ConstBytes piece = ConstBytes(unused).first(std::min(kMiB, table.length - at));
      TRY(store_.Write(table.offset + at, piece));
    }
    return {};
  }

  Result<> WriteHeader(const Header& header, const std::optional<ParentRecord>& parent) {
    DiskHeader disk{};
    std::copy_n(kHeaderCookie, sizeof disk.cookie, disk.cookie);
    disk.data_offset = kNoOffset;
    disk.table_offset = header.table_offset;
    disk.version = kVersion;
    disk.table_entries = header.table_entries;
    disk.block_size = header.block_size;
    if (parent) TRY(parent->Write(store_, header.table().end(), disk));
    SealHeader(disk);
    return store_.Write(kHeaderAt, AsBytes(disk));
  }

  Store& store_;
  const CreateOptions& options_;
  const Plan& plan_;
  const Footer footer_;
};

}  // namespace

Result<> CheckSize(uint64_t size) {
  if (size > kMostSize) {
    return Fail(Code::kOutOfRange,
                "a VHD has at most 2040 GiB ({} bytes), not {}: use vhdx for larger disks",
                kMostSize, size);
  }
  if (!IsAligned(size, kSector)) {
    return Fail(Code::kOutOfRange, "a VHD has whole sectors of 512 bytes; {} bytes are not", size);
  }
  return {};
}

void MarkExact(Footer& footer) {
  uint64_t geometry = footer.geometry.bytes();
  if (geometry == footer.current_size || geometry >= kMostGeometry) return;
  using namespace std::string_view_literals;
  for (std::string_view exact : {"win "sv, "qem2"sv, "d2v "sv, "tap\0"sv, "CTXS"sv, "wa\0\0"sv}) {
    if (footer.creator == exact) return;
  }
  footer.creator = "qem2";
}

Result<> CreateVhd(Store& store, const CreateOptions& options) {
  Plan plan = TRY(MakePlan(options));
  Creation creation(store, options, plan);
  return plan.type == DiskType::kFixed ? creation.Fixed() : creation.Dynamic();
}

// Dynamic disks: headers and table, and a unit for each block that holds data.
Result<MeasureResult> MeasureVhd(const CreateOptions& options, uint64_t /*allocated_bytes*/,
                                 std::span<const Range> data) {
  Plan plan = TRY(MakePlan(options));
  MeasureResult result;
  if (plan.type == DiskType::kFixed) {
    result.required = result.fully_allocated = plan.size + kSector;
    return result;
  }
  Header header{.table_offset = kTableAt,
                .table_entries = static_cast<uint32_t>(plan.blocks()),
                .block_size = plan.block_size};
  uint64_t used = 0, counted_to = 0;
  for (const Range& range : data) {
    uint64_t first = std::max(range.offset / plan.block_size, counted_to);
    uint64_t end = DivideUp(std::min(range.end(), plan.size), plan.block_size);
    if (range.empty() || end <= first) continue;
    used += end - first;
    counted_to = end;
  }
  auto bytes = [&](uint64_t blocks) {
    if (blocks == 0) return header.table().end() + kSector;
    uint64_t first = RoundUp(header.table().end() + header.bitmap_size(), kAlign);
    return first + (blocks - 1) * RoundUp(header.unit(), kAlign) + plan.block_size + kSector;
  };
  result.required = bytes(used);
  result.fully_allocated = bytes(plan.blocks());
  return result;
}

}  // namespace platter::vhd
