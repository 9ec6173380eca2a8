#include "formats/qcow2/qcow2_amend.h"

#include <algorithm>
#include <bit>
#include <set>
#include <utility>

#include "formats/options.h"
#include "formats/qcow2/qcow2_check.h"
#include "formats/qcow2/qcow2_check_compare.h"
#include "formats/qcow2/qcow2_check_tables.h"
#include "formats/qcow2/qcow2_crypto.h"
#include "formats/qcow2/qcow2_header_io.h"
#include "formats/qcow2/qcow2_refcount_build.h"
#include "io/codec/luks_slots.h"

namespace platter::qcow2 {
namespace {

using check::Image;
using check::Survey;

// ---- The header ----

Result<> AmendParent(const OptionMap& options, Header& header) {
  auto name = FindOption(options, "backing_file"), format = FindOption(options, "backing_fmt");
  if (name) {
    header.has_backing = !name->empty();
    header.backing_name = std::string(*name);
    header.backing_format.clear();
    if (header.has_backing && header.data_file_raw()) {
      return Fail(Code::kUnsupported, "an image with raw external data can have no parent");
    }
  }
  if (format && !header.has_backing && !format->empty()) {
    return Fail(Code::kUnsupported, "backing_fmt needs a backing_file");
  }
  if (format) header.backing_format = std::string(*format);
  return {};
}

// What version 2 cannot have, but for zero clusters.
Result<> CheckDowngrade(const Header& header) {
  std::string_view what;
  if (header.has_data_file()) what = "external data files";
  if (header.compression != kCompressionDeflate) what = "zstd";
  if (header.extended_l2()) what = "extended L2 entries";
  if (header.refcount_order != 4) what = "refcounts other than 16 bits (refcount_bits=16)";
  if (header.bitmaps) what = "bitmaps";
  if (header.incompatible & ~(kDirty | kCorrupt)) what = what.empty() ? "some feature" : what;
  if (what.empty()) return {};
  return Fail(Code::kUnsupported, "compat=0.10 has no {}, and the image has", what);
}

// The new header, as far as options say; refcount structures are not made yet.
Result<Header> Amended(const Header& before, const OptionMap& options) {
  Header header = before;
  header.autoclear &= kKnownAutoclear;
  auto compat = TRY(ChoiceOption(options, "compat", {"0.10", "v2", "1.1", "v3"}));
  const bool version2 = compat ? *compat < 2 : before.version == 2;
  if (!version2) header.version = 3;
  auto lazy = TRY(BoolOption(options, "lazy_refcounts"));
  if (lazy) {
    header.compatible =
        *lazy ? header.compatible | kLazyRefcounts : header.compatible & ~kLazyRefcounts;
  }
  if (auto bits = TRY(NumberOption(options, "refcount_bits"))) {
    if (!std::has_single_bit(*bits) || *bits > 64) {
      return Fail(Code::kUnsupported, "refcount_bits {}: must be a power of two of at most 64",
                  *bits);
    }
    header.refcount_order = static_cast<uint32_t>(std::countr_zero(*bits));
  }
  TRY(AmendParent(options, header));
  if (!version2) return header;
  if (lazy.value_or(false)) return Fail(Code::kUnsupported, "lazy_refcounts needs compat=1.1");
  TRY(CheckDowngrade(header));
  header.version = 2;
  header.incompatible = header.compatible = header.autoclear = 0;
  header.unknown_fields.clear();
  return header;
}

// ---- What the clusters say ----

Result<> CheckSound(Store& store, const OpenOptions& open) {
  const CheckReport found = TRY(CheckQcow2(store, open, {}));
  if (found.corruptions + found.errors == 0) return {};
  return Fail(Code::kCorrupt, "the image has to be repaired first: {} corruptions, {} errors",
              found.corruptions, found.errors);
}

// For version 2: its entries cannot say "zero", and its snapshots have the disk's size.
Result<> CheckForVersion2(const Image& image, const Survey& survey) {
  const Header& header = image.header;
  check::Holes holes(image);
  std::vector<std::byte> bytes(image.cluster_size());
  for (const check::TableRef& table : survey.tables) {
    if (holes.Covers({table.offset, image.cluster_size()})) continue;
    TRY(image.Read(table.offset, bytes));
    for (uint64_t i = 0; i < header.l2_entries(); ++i) {
      const L2Entry entry = check::LoadL2(header, bytes, i);
      if ((entry.descriptor & kCompressed) || !(entry.descriptor & kZeroFlag)) continue;
      return Fail(Code::kUnsupported,
                  "compat=0.10 has no zero clusters, and {} names some: delete the snapshots first",
                  survey.Name(table));
    }
  }
  return {};
}

// New refcount structures of `order`, behind everything; `header` then names them.
Result<> Recount(const Image& image, Survey& survey, Header& header) {
  std::set<uint64_t> old, indices;
  for (uint64_t value : survey.blocks) {
    if (check::IsBlock(value)) old.insert(image.Cluster(value));
  }
  for (uint64_t i = 0; i < image.header.refcount_table_clusters; ++i) {
    old.insert(image.Cluster(image.header.refcount_table_offset) + i);
  }
  const uint64_t most = header.refcount_max();
  const uint64_t per_block = header.refcounts_per_block();
  for (const auto& slot : survey.refs) {
    indices.insert(slot.first * check::RefMap::kPageClusters / per_block);
    for (unsigned i = 0; i < check::RefMap::kPageClusters; ++i) {
      const uint64_t count = survey.refs.Count(slot, i);
      if (count <= most) continue;
      return Fail(Code::kUnsupported, "refcount_bits={}: the cluster at {:#x} is used {} times",
                  header.refcount_bits(),
                  image.Offset(slot.first * check::RefMap::kPageClusters + i), count);
    }
  }
  uint64_t start = image.clusters();
  while (survey.refs.Count(start) > 0) ++start;
  const auto place =
      TRY(check::PlanRefcounts(header, header.refcount_order, start, std::move(indices)));
  if (image.store.caps().block_device) {
    return Fail(Code::kUnsupported, "refcount_bits on a device");
  }
  TRY(check::WriteNewRefcounts(image.store, header, header.refcount_order, place,
                               [&](uint64_t cluster) -> Result<uint64_t> {
                                 return old.contains(cluster) ? 0 : survey.refs.Count(cluster);
                               }));
  header.refcount_table_offset = image.Offset(place.table);
  header.refcount_table_clusters = static_cast<uint32_t>(place.table_clusters);
  return {};
}

Result<> AmendHeader(Store& store, const OpenOptions& open, const OptionMap& options) {
  TRY(RepairDirty(store));
  const Image image = TRY(check::LoadImage(store));
  if (image.header.incompatible & kCorrupt) {
    return Fail(Code::kCorrupt, "the image is marked as corrupt: repair it with check first");
  }
  Header header = TRY(Amended(image.header, options));
  const bool down = header.version < image.header.version;
  const bool recount = header.refcount_order != image.header.refcount_order;
  if (down || recount) {
    TRY(CheckSound(store, open));
    Survey survey;
    check::SurveyMetadata(image, survey);
    check::CountTables(image, survey);
    if (survey.incomplete || survey.refs.overflowed()) {
      return Fail(Code::kUnsupported, "too many clusters far from each other to count them all");
    }
    if (down) TRY(CheckForVersion2(image, survey));
    if (recount) TRY(Recount(image, survey, header));
  }
  TRY(PutHeader(store, header));
  return store.Sync();
}

// ---- Key slots ----

Result<> WriteInOrder(Store& store, uint64_t base, const std::vector<LuksWrite>& writes) {
  for (const LuksWrite& write : writes) {
    TRY_AS("LUKS header", store.Write(base + write.offset, ConstBytes(write.bytes)));
    TRY(store.Sync());
  }
  return {};
}

Result<> AmendKeySlots(Store& store, const OpenOptions& open, const AmendOptions& amend) {
  const Image image = TRY(check::LoadImage(store));
  if (!image.header.crypto) return Fail(Code::kUnsupported, "the image is not encrypted with LUKS");
  const Header::Crypto place = *image.header.crypto;
  std::vector<std::byte> first(Luks1::kHeaderBytes);
  TRY(image.Read(place.offset, first));
  const Luks1 luks = TRY_AS("LUKS header", ParseLuks1(first));
  std::vector<std::byte> area(std::min(luks.key_area, place.length));
  TRY(image.Read(place.offset, area));

  const size_t state =
      TRY(ChoiceOption(amend.options, "encrypt.state", {"active", "inactive"})).value_or(2);
  auto slot = TRY(NumberOption(amend.options, "encrypt.keyslot"));
  if (state == 0) {
    if (!open.secret || !amend.new_secret) {
      return Fail(Code::kRefused,
                  "encrypt.state=active needs a passphrase that opens the disk (--secret) and the "
                  "new one (--new-secret)");
    }
    const uint64_t time = std::clamp<uint64_t>(
        TRY(NumberOption(amend.options, "encrypt.iter-time")).value_or(2000), 1, 60'000);
    const Secret key = TRY(UnlockLuks1(luks, area, open.secret->bytes()));
    return WriteInOrder(store, place.offset,
                        TRY(AddLuksSlot(luks, first, key, amend.new_secret->bytes(), slot,
                                        static_cast<uint32_t>(time))));
  }
  if (state == 1 && slot) return WriteInOrder(store, place.offset, TRY(EraseLuksSlot(luks, *slot)));
  if (state == 2 || !amend.old_secret) {
    return Fail(Code::kUnsupported,
                "encrypt.* needs encrypt.state=active, or encrypt.state=inactive with "
                "encrypt.keyslot or the passphrase that shall open it no more (--old-secret)");
  }
  const std::vector<size_t> slots = TRY(FindLuksSlots(luks, area, amend.old_secret->bytes()));
  if (slots.empty()) return Fail(Code::kRefused, "--old-secret opens no key slot");
  const auto active =
      std::ranges::count_if(luks.slots, [](const auto& each) { return each.has_value(); });
  if (static_cast<size_t>(active) == slots.size()) {
    return Fail(Code::kRefused, "--old-secret is the only passphrase: nobody could read the disk");
  }
  for (size_t each : slots) {
    TRY(WriteInOrder(store, place.offset, TRY(EraseLuksSlot(luks, each))));
  }
  return {};
}

}  // namespace

Result<> AmendQcow2(Store& store, const OpenOptions& open, const AmendOptions& amend) {
  if (!store.writable()) return Fail(Code::kReadOnly, "'{}' is opened for reading", store.name());
  TRY(CheckOptionNames("amending qcow2", amend.options, kAmendOptions));
  auto is_key = [](const auto& option) { return option.first.starts_with("encrypt."); };
  if (std::ranges::any_of(amend.options, is_key)) TRY(AmendKeySlots(store, open, amend));
  if (std::ranges::all_of(amend.options, is_key)) return {};
  return AmendHeader(store, open, amend.options);
}

}  // namespace platter::qcow2
