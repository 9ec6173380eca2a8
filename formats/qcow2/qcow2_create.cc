// A new image, in file order:
//
//   header | refcount table | refcount blocks | LUKS header | L1 table | L2 tables | guest data
//
// L2 tables and data only with preallocation; data not where an external file holds it. All parts
// are contiguous, so each is one array: block i follows block i - 1, table i table i - 1. The store
// is made empty and as long as the image first, so that zeros need no writing: creation costs what
// the tables in use cost, whatever the size of the disk. The header is written last, after a Sync:
// what an interrupted creation leaves is not an image.
#include "formats/qcow2/qcow2_create.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "formats/qcow2/qcow2_crypto.h"
#include "formats/qcow2/qcow2_pieces.h"
#include "formats/qcow2/qcow2_plan.h"

namespace platter::qcow2 {
namespace {

// Writes `part` of the store piece by piece: fill(offset in the part, zeroed bytes) makes each.
template <class Fill>
Result<> WritePart(Store& store, Range part, Fill fill) {
  return InPieces(
      part.length,
      [&](uint64_t at, ConstBytes bytes) { return store.Write(part.offset + at, bytes); }, fill);
}

// The first `count` entries of a table of 64-bit values; the rest of its last cluster stays zero.
template <class Value>
Result<> WriteTable(Store& store, Range table, uint64_t count, Value value) {
  return WritePart(store, Range{table.offset, count * 8},
                   [&](uint64_t at, Bytes piece) { FillTable(at, piece, count, value); });
}

// Without the zeros that fill the cluster, in pages.
uint64_t UsedBytes(ConstBytes cluster) {
  auto last =
      std::find_if(cluster.rbegin(), cluster.rend(), [](std::byte b) { return b != std::byte{0}; });
  return std::min<uint64_t>(RoundUp(static_cast<uint64_t>(cluster.rend() - last), 4096),
                            cluster.size());
}

class Creation {
 public:
  Creation(Store& store, const CreateOptions& options, ImagePlan plan)
      : store_(store), options_(options), plan_(std::move(plan)), header_(plan_.header) {}

  Result<> Run() {
    TRY(MakeDataFile());
    std::vector<std::byte> luks = TRY(MakeLuksArea(options_, header_, plan_.luks));
    bool mapped = plan_.preallocation != Preallocation::kOff;
    const uint64_t guest = DivideUp(header_.size, header_.cluster_size());
    layout_ = TRY(LayOut(header_, luks.size(), mapped ? DivideUp(guest, header_.l2_entries()) : 0,
                         mapped && !header_.has_data_file() ? guest : 0));
    if (!luks.empty()) header_.crypto = Header::Crypto{layout_.luks.offset, luks.size()};
    header_.l1_offset = layout_.l1.empty() ? 0 : layout_.l1.offset;
    header_.refcount_table_offset = layout_.refcount_table.offset;
    header_.refcount_table_clusters =
        static_cast<uint32_t>(layout_.refcount_table.length >> header_.cluster_bits);
    std::vector<std::byte> first = TRY(BuildHeader(header_));

    TRY(Empty());
    TRY(WriteRefcounts());
    if (!luks.empty()) TRY(store_.Write(layout_.luks.offset, ConstBytes(luks)));
    if (mapped) TRY(WriteMapping());
    TRY(PrepareData());
    TRY(store_.Sync());
    TRY(store_.Write(0, ConstBytes(first).first(UsedBytes(first))));
    return store_.Sync();
  }

 private:
  Result<> MakeDataFile() {
    if (!header_.has_data_file()) return {};
    if (!options_.files) return Fail(Code::kRefused, "data_file: no further file can be made here");
    data_file_ = TRY_AS("data file", options_.files->MakeFile(*header_.data_file_name));
    return {};
  }

  // Old contents go; new ones read as zeros, except the data part of a store of fixed size.
  Result<> Empty() {
    fixed_size_ = store_.caps().block_device;
    if (!fixed_size_) {
      TRY(store_.Resize(0));
      return store_.Resize(layout_.end);
    }
    uint64_t size = TRY(store_.Size());
    if (size < layout_.end) {
      return Fail(Code::kNoSpace, "'{}' has {} bytes; the new image needs {}", store_.name(), size,
                  layout_.end);
    }
    return store_.Zero(Range{0, layout_.data.offset}, /*may_unmap=*/true);
  }

  // Every cluster up to the end is used once.
  Result<> WriteRefcounts() {
    uint64_t cluster_size = header_.cluster_size();
    TRY(WriteTable(store_, layout_.refcount_table, layout_.refcount_blocks.length / cluster_size,
                   [&](uint64_t i) { return layout_.refcount_blocks.offset + i * cluster_size; }));
    uint64_t clusters = layout_.end / cluster_size;
    Range counts{layout_.refcount_blocks.offset, DivideUp(clusters * header_.refcount_bits(), 8)};
    return WritePart(store_, counts, [&](uint64_t at, Bytes piece) {
      FillRefcounts(header_, at, piece, clusters);
    });
  }

  // Preallocated clusters must read as zeros. Where their bytes may be something else (a device's
  // old contents, or zeros that are noise once decrypted) the entry says so.
  bool zero_entries() const { return header_.crypt_method != kCryptNone || fixed_size_; }

  L2Entry EntryOf(uint64_t index) const {
    uint64_t at = index << header_.cluster_bits;
    L2Entry entry{kCopied | (header_.has_data_file() ? at : layout_.data.offset + at), 0};
    if (header_.extended_l2()) {
      // With a parent all subclusters stay its own, until they are written into their place.
      if (!header_.has_backing) entry.bitmap = zero_entries() ? kAllZero : kAllAllocated;
    } else if (zero_entries() && header_.version >= 3) {
      entry.descriptor |= kZeroFlag;
    }
    return entry;
  }

  Result<> WriteMapping() {
    uint64_t clusters = DivideUp(header_.size, header_.cluster_size());
    uint32_t width = header_.l2_entry_size();
    TRY(WritePart(store_, Range{layout_.l2.offset, clusters * width},
                  [&](uint64_t at, Bytes piece) {
                    for (uint64_t in = 0; in < piece.size(); in += width) {
                      L2Entry entry = EntryOf((at + in) / width);
                      StoreAt(piece, in, be64(entry.descriptor));
                      if (header_.extended_l2()) StoreAt(piece, in + 8, be64(entry.bitmap));
                    }
                  }));
    return WriteTable(store_, layout_.l1, header_.l1_size, [&](uint64_t i) {
      return kCopied | (layout_.l2.offset + (i << header_.cluster_bits));
    });
  }

  // The guest's bytes, here or in the data file: as allocated as the options ask for.
  Result<> PrepareData() {
    Store& store = header_.has_data_file() ? *data_file_ : store_;
    Range data = header_.has_data_file() ? Range{0, header_.size} : layout_.data;
    if (header_.has_data_file()) TRY(EmptyDataFile(store));
    if (!data.empty() && plan_.preallocation == Preallocation::kFalloc) TRY(store.Allocate(data));
    if (plan_.preallocation == Preallocation::kFull) {
      TRY(WritePart(store, data, [](uint64_t, Bytes) {}));
    } else if (fixed_size_ && header_.version == 2 && !data.empty()) {
      TRY(store.Zero(data, /*may_unmap=*/plan_.preallocation == Preallocation::kMetadata));
    }
    return header_.has_data_file() ? store.Sync() : Result<>();
  }

  Result<> EmptyDataFile(Store& store) {
    if (!store.caps().block_device) {
      TRY(store.Resize(0));
      return store.Resize(header_.size);
    }
    uint64_t size = TRY(store.Size());
    if (size < header_.size) {
      return Fail(Code::kNoSpace, "data file '{}' has {} bytes; the disk has {}", store.name(),
                  size, header_.size);
    }
    // Nothing else says that a raw disk is empty; and preallocated clusters must be.
    if (plan_.preallocation == Preallocation::kOff || header_.size == 0) return {};
    return store.Zero(Range{0, header_.size}, /*may_unmap=*/true);
  }

  static constexpr uint64_t kAllAllocated = 0xffffffff, kAllZero = uint64_t{0xffffffff} << 32;

  Store& store_;
  const CreateOptions& options_;
  ImagePlan plan_;
  Header& header_;
  ImageLayout layout_;
  Store* data_file_ = nullptr;  // null: guest data is in store_
  bool fixed_size_ = false;
};

}  // namespace

Result<> CreateQcow2(Store& store, const CreateOptions& options) {
  ImagePlan plan = TRY(PlanImage(options));
  return Creation(store, options, std::move(plan)).Run();
}

}  // namespace platter::qcow2
