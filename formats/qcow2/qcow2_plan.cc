#include "formats/qcow2/qcow2_plan.h"

#include <bit>
#include <string>
#include <utility>

#include "base/check.h"
#include "formats/options.h"
#include "formats/qcow2/qcow2_crypto.h"

namespace platter::qcow2 {
namespace {

Result<> PlanSize(const CreateOptions& options, Header& header) {
  const uint64_t size = options.size;
  constexpr uint64_t kSectorSize = 512;
  uint64_t cluster_size = TRY(SizeOption(options.options, "cluster_size")).value_or(65536);
  if (!std::has_single_bit(cluster_size) || cluster_size >> kMinClusterBits == 0 ||
      cluster_size >> kMaxClusterBits > 1) {
    return Fail(Code::kUnsupported, "cluster_size {}: must be a power of two between 512 and 2M",
                cluster_size);
  }
  header.cluster_bits = static_cast<uint32_t>(std::countr_zero(cluster_size));
  if (header.extended_l2() && header.cluster_bits < kMinExtendedL2Bits) {
    return Fail(Code::kUnsupported, "extended_l2 needs a cluster_size of at least {}",
                uint64_t{1} << kMinExtendedL2Bits);
  }
  if (size > (uint64_t{1} << 63) - kSectorSize) {
    return Fail(Code::kOutOfRange, "a disk of {} bytes is too large", size);
  }
  header.size = RoundUp(size, kSectorSize);
  uint64_t entries = header.l1_entries_for(header.size);
  if (entries > kMaxL1Bytes / 8) {
    return Fail(Code::kOutOfRange,
                "a disk of {} bytes is too large for clusters of {} (at most {}): "
                "use a larger cluster_size",
                header.size, cluster_size, kMaxL1Bytes / 8 * header.l2_span());
  }
  header.l1_size = static_cast<uint32_t>(entries);
  return {};
}

// What version 2 cannot have.
Result<> CheckVersion2(const Header& header) {
  std::string_view what;
  if (header.incompatible & kDataFile) what = "data_file";
  if (header.compression != kCompressionDeflate) what = "compression_type";
  if (header.refcount_order != 4) what = "refcount_bits other than 16";
  if (header.extended_l2()) what = "extended_l2";
  if (header.compatible & kLazyRefcounts) what = "lazy_refcounts";
  if (what.empty()) return {};
  return Fail(Code::kUnsupported, "{} needs compat=1.1", what);
}

Result<> PlanFeatures(const OptionMap& options, Header& header) {
  header.version =
      TRY(ChoiceOption(options, "compat", {"0.10", "v2", "1.1", "v3"})).value_or(3) < 2 ? 2 : 3;
  if (TRY(BoolOption(options, "extended_l2")).value_or(false)) header.incompatible |= kExtendedL2;
  if (TRY(BoolOption(options, "lazy_refcounts")).value_or(false))
    header.compatible |= kLazyRefcounts;
  if (TRY(ChoiceOption(options, "compression_type", {"zlib", "deflate", "zstd"})).value_or(0) ==
      2) {
    header.compression = kCompressionZstd;
    header.incompatible |= kCompressionBit;
  }
  uint64_t bits = TRY(NumberOption(options, "refcount_bits")).value_or(16);
  if (!std::has_single_bit(bits) || bits > 64) {
    return Fail(Code::kUnsupported, "refcount_bits {}: must be a power of two of at most 64", bits);
  }
  header.refcount_order = static_cast<uint32_t>(std::countr_zero(bits));
  if (auto name = FindOption(options, "data_file")) {
    if (name->empty()) return Fail(Code::kUnsupported, "data_file: the name is empty");
    header.data_file_name = std::string(*name);
    header.incompatible |= kDataFile;
  }
  if (TRY(BoolOption(options, "data_file_raw")).value_or(false)) {
    if (!header.has_data_file()) return Fail(Code::kUnsupported, "data_file_raw needs data_file");
    header.autoclear |= kDataFileRaw;
  }
  return header.version == 2 ? CheckVersion2(header) : Result<>();
}

Result<> PlanParent(const CreateOptions& options, Header& header) {
  if (!options.parent) return {};
  if (options.parent->name.empty()) {
    return Fail(Code::kUnsupported, "the name of the parent is empty");
  }
  if (header.data_file_raw()) {
    return Fail(Code::kUnsupported, "data_file_raw cannot be used together with a backing file");
  }
  header.has_backing = true;
  header.backing_name = options.parent->name;
  header.backing_format = options.parent->format;
  return {};
}

Result<> PlanPreallocation(const CreateOptions& options, ImagePlan& plan) {
  plan.preallocation = TRY(PreallocationOption(
      options.options, {Preallocation::kMetadata, Preallocation::kFalloc, Preallocation::kFull}));
  const Header& header = plan.header;
  if (plan.preallocation != Preallocation::kOff && header.has_backing && !header.extended_l2()) {
    return Fail(
        Code::kUnsupported,
        "preallocation with a backing file needs extended_l2: a whole cluster would hide it");
  }
  if (plan.preallocation != Preallocation::kOff && header.crypt_method != kCryptNone &&
      header.version < 3) {
    return Fail(
        Code::kUnsupported,
        "preallocation with encryption needs compat=1.1: version 2 cannot say that a cluster "
        "is zero, and the preallocated zeros would be decrypted to noise");
  }
  // Without tables the data file could not be told from what the disk reads as.
  if (header.data_file_raw() && plan.preallocation == Preallocation::kOff) {
    plan.preallocation = Preallocation::kMetadata;
  }
  return {};
}

}  // namespace

Result<ImagePlan> PlanImage(const CreateOptions& options) {
  TRY(CheckOptionNames("qcow2", options.options, kCreateOptions));
  ImagePlan plan;
  TRY(PlanFeatures(options.options, plan.header));
  TRY(PlanSize(options, plan.header));
  TRY(PlanParent(options, plan.header));
  plan.luks = TRY(PlanEncryption(options, plan.header));
  TRY(PlanPreallocation(options, plan));
  return plan;
}

RefcountClusters RefcountClustersFor(const Header& header, uint64_t others) {
  // More structure needs more counts; each round adds a small fraction of the one before, so the
  // least answer is reached from below after a few.
  RefcountClusters sizes;
  while (true) {
    uint64_t total = others + sizes.table + sizes.blocks;
    RefcountClusters next;
    next.blocks = DivideUp(total, header.refcounts_per_block());
    next.table = DivideUp(next.blocks, header.cluster_size() / 8);
    if (next.blocks == sizes.blocks && next.table == sizes.table) return sizes;
    sizes = next;
  }
}

Result<ImageLayout> LayOut(const Header& header, uint64_t luks_bytes, uint64_t l2_tables,
                           uint64_t data) {
  const uint64_t cluster_size = header.cluster_size();
  uint64_t luks = DivideUp(luks_bytes, cluster_size);
  uint64_t l1 = DivideUp(header.l1_entries_for(header.size) * 8, cluster_size);
  uint64_t others = 1 + luks + l1 + l2_tables + data;
  RefcountClusters refcounts = RefcountClustersFor(header, others);
  uint64_t total = others + refcounts.table + refcounts.blocks;
  if (refcounts.table > kMaxRefcountTableBytes / cluster_size ||
      total > kOffsetMask / cluster_size) {
    return Fail(
        Code::kOutOfRange,
        "an image of {} clusters of {} bytes is larger than qcow2 can count with {} refcount "
        "bits: use a larger cluster_size",
        total, cluster_size, header.refcount_bits());
  }

  ImageLayout layout;
  layout.end = cluster_size;  // the header
  auto place = [&](uint64_t clusters) {
    Range range{layout.end, clusters * cluster_size};
    layout.end = range.end();
    return range;
  };
  layout.refcount_table = place(refcounts.table);
  layout.refcount_blocks = place(refcounts.blocks);
  layout.luks = place(luks);
  layout.l1 = place(l1);
  layout.l2 = place(l2_tables);
  layout.data = place(data);
  return layout;
}

}  // namespace platter::qcow2
