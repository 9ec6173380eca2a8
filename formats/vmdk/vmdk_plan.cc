#include "formats/vmdk/vmdk_plan.h"

#include <algorithm>

#include "formats/new_identity.h"
#include "formats/options.h"
#include "formats/vmdk/vmdk_create.h"
#include "io/codec/hash.h"

namespace platter::vmdk {

namespace {

constexpr std::string_view kSubformats[] = {"monolithicSparse", "monolithicFlat",
                                            "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
                                            "streamOptimized"};
constexpr uint64_t kDescriptorSectors = 20;  // at least, of an embedded one
constexpr uint64_t kStreamOverhead = 64 * kKiB;
constexpr uint64_t kMostExtents = 10000;

std::string VmwareUuid(ImageId id) {
  id[0] = std::byte{0x60}, id[1] = std::byte{0x00}, id[2] = std::byte{0xc2};
  std::string text, hex = Hex(id);
  for (size_t i = 0; i < id.size(); ++i) {
    if (i > 0) text += i == 8 ? '-' : ' ';
    text += hex.substr(2 * i, 2);
  }
  return text;
}

Result<> PlanParent(const CreateOptions& options, ImagePlan& plan) {
  if (!options.parent) return {};
  if (plan.flat()) {
    return Fail(Code::kUnsupported,
                "subformat {}: flat extents hold everything and cannot have a "
                "parent",
                SubformatName(plan.subformat));
  }
  plan.descriptor.parent_cid = TRY(CidOfParent(*options.parent, options.parent_file));
  plan.descriptor.parent_hint = options.parent->name;
  return {};
}

Result<> PlanExtents(const CreateOptions& options, ImagePlan& plan) {
  TRY(CheckName("file name", options.file_name));
  std::string base = options.file_name;
  if (base.ends_with(".vmdk") && base.size() > 5) base.resize(base.size() - 5);
  uint64_t left = DivideUp(options.size, kSector);
  bool split = plan.subformat == Subformat::kSplitSparse || plan.subformat == Subformat::kSplitFlat;
  const uint64_t step = split ? kSplitSectors : std::max<uint64_t>(left, 1);
  if (DivideUp(left, step) > kMostExtents) {
    return Fail(Code::kOutOfRange, "{} bytes would be more than {} extents of 2 GB", options.size,
                kMostExtents);
  }
  for (size_t number = 1; left > 0 || number == 1; ++number) {
    ExtentLine line;
    line.type = plan.flat() ? ExtentLine::kFlat : ExtentLine::kSparse;
    line.sectors = std::min(left, step);
    line.name = plan.embedded() ? options.file_name
                : split ? fmt::format("{}-{}{:03}.vmdk", base, plan.flat() ? 'f' : 's', number)
                        : base + "-flat.vmdk";
    left -= line.sectors;
    plan.descriptor.extents.push_back(std::move(line));
  }
  return {};
}

Result<> PlanVersions(const CreateOptions& options, ImagePlan& plan) {
  auto number = [&](std::string_view name, uint64_t otherwise) -> Result<std::string> {
    return std::to_string(TRY(NumberOption(options.options, name)).value_or(otherwise));
  };
  bool compat6 = TRY(BoolOption(options.options, "compat6")).value_or(false);
  if (compat6 && FindOption(options.options, "hwversion")) {
    return Fail(Code::kUnsupported, "options 'compat6' and 'hwversion' say the same thing twice");
  }
  plan.descriptor.hardware_version = TRY(number("hwversion", compat6 ? 6 : 4));
  plan.descriptor.tools_version = TRY(number("toolsversion", 2147483647));
  return {};
}

}  // namespace

// Names go into a line of text, in quotes.
Result<> CheckName(std::string_view what, std::string_view name) {
  auto bad = [](char c) { return c == '"' || c == '\n' || c == '\r' || c == '\0'; };
  if (!name.empty() && std::ranges::none_of(name, bad)) return {};
  return Fail(Code::kUnsupported, "{} '{}' cannot be recorded in a descriptor", what,
              Printable(name));
}

Result<uint32_t> CidOfParent(const Reference& reference, const std::optional<ParentFile>& file) {
  if (!file) {
    return Fail(Code::kRefused,
                "a VMDK records the content id (CID) of its parent, so the parent has to be opened "
                "(without -u)");
  }
  const Info& parent = file->info;
  if (parent.format != "vmdk") {
    return Fail(Code::kUnsupported,
                "a VMDK can only record a parent that is a VMDK, and this one "
                "is {}",
                parent.format);
  }
  if (parent.identity.version.empty()) {
    return Fail(Code::kUnsupported, "the parent has no content id (CID) to be known by");
  }
  TRY(CheckName("parent", reference.name));
  return static_cast<uint32_t>(std::stoul(parent.identity.version, nullptr, 16));
}

std::string_view SubformatName(Subformat subformat) {
  return kSubformats[static_cast<size_t>(subformat)];
}

Result<ImagePlan> PlanImage(const CreateOptions& options) {
  TRY(CheckOptionNames("vmdk", options.options, kCreateOptions));
  ImagePlan plan;
  size_t subformat = TRY(ChoiceOption(options.options, "subformat",
                                      {kSubformats[0], kSubformats[1], kSubformats[2],
                                       kSubformats[3], kSubformats[4]}))
                         .value_or(0);
  plan.subformat = static_cast<Subformat>(subformat);
  if (options.size > INT64_MAX - kSector || (!plan.flat() && options.size > kMostSparse)) {
    return Fail(Code::kOutOfRange, "a disk of {} bytes is too large for {}", options.size,
                SubformatName(plan.subformat));
  }
  static constexpr std::string_view kAdapters[] = {"ide", "buslogic", "lsilogic", "legacyESX"};
  size_t adapter = TRY(ChoiceOption(options.options, "adapter_type",
                                    {kAdapters[0], kAdapters[1], kAdapters[2], kAdapters[3]}))
                       .value_or(0);
  plan.zeroed_grains = TRY(BoolOption(options.options, "zeroed_grain")).value_or(false);
  plan.allocate =
      TRY(PreallocationOption(options.options, {Preallocation::kFalloc})) == Preallocation::kFalloc;
  if (plan.allocate && !plan.flat()) {
    return Fail(Code::kUnsupported, "option 'preallocation': {} has no flat extents",
                SubformatName(plan.subformat));
  }
  if (plan.zeroed_grains && (plan.flat() || plan.subformat == Subformat::kStream)) {
    return Fail(Code::kUnsupported, "option 'zeroed_grain': {} has no grains that change",
                SubformatName(plan.subformat));
  }
  TRY(PlanVersions(options, plan));
  TRY(PlanParent(options, plan));
  TRY(PlanExtents(options, plan));
  NewDescriptor& d = plan.descriptor;
  d.create_type = SubformatName(plan.subformat);
  d.adapter_type = kAdapters[adapter];
  ImageId content = MakeImageId(options, "content");
  d.cid = *LoadAt<le32>(content, 12);
  // Two values with meanings of their own: no parent, and what programs write that know none.
  if (d.cid >= kNoParentCid - 1) d.cid ^= 0x5a5a5a5a;
  d.long_id = Hex(ConstBytes(content).first(12)) + fmt::format("{:08x}", d.cid);
  d.uuid = VmwareUuid(MakeImageId(options, "uuid"));
  return plan;
}

SparseGeometry LayOutSparse(const ImagePlan& plan, uint64_t capacity, uint64_t text) {
  const bool stream = plan.subformat == Subformat::kStream;
  SparseGeometry g;
  g.capacity = RoundUp(capacity, kSector);
  g.grain = kNewGrain;
  g.table_entries = kNewTableEntries;
  g.directory_entries = DivideUp(g.capacity, g.table_span());
  g.version = stream ? 3 : plan.zeroed_grains ? 2 : 1;
  g.flags = kNewlineTest | (stream ? uint32_t{kCompressed} | kMarkers : uint32_t{kRedundant}) |
            (plan.zeroed_grains ? uint32_t{kZeroedGrains} : 0);
  uint64_t at = kSector;
  if (text > 0) {
    // A little room for what is entered later.
    g.descriptor = {at, std::max(kDescriptorSectors * kSector, RoundUp(text + 256, kSector))};
    at = g.descriptor.end();
  }
  if (stream) {
    g.at_end = true;
    g.overhead = RoundUp(at, kStreamOverhead);
    return g;
  }
  const uint64_t directory = RoundUp(g.directory_entries * sizeof(le32), kSector);
  const uint64_t tables = g.directory_entries * g.table_bytes();
  g.redundant = at;
  g.directory = at + directory + tables;
  g.overhead = RoundUp(g.directory + directory + tables, g.grain);
  return g;
}

SparseHeader BuildHeader(const SparseGeometry& g) {
  SparseHeader header{};
  header.magic = kSparseMagic;
  header.version = g.version;
  header.flags = g.flags;
  header.capacity = g.capacity / kSector;
  header.grain_size = g.grain / kSector;
  header.descriptor_offset = g.descriptor.offset / kSector;
  header.descriptor_size = g.descriptor.length / kSector;
  header.table_entries = g.table_entries;
  header.rgd_offset = g.redundant.value_or(0) / kSector;
  header.gd_offset = g.at_end ? kAtEnd : g.directory / kSector;
  header.overhead = g.overhead / kSector;
  header.unclean_shutdown = g.unclean ? 1 : 0;
  std::ranges::copy(kNewlineBytes, header.newline_test);
  header.compression = g.compressed() ? kCompressionZlib : uint16_t{0};
  return header;
}

}  // namespace platter::vmdk
