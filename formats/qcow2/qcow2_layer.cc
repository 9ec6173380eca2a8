// Construction, the first write, and the end. The essay is in qcow2_layer.h.
#include "formats/qcow2/qcow2_layer.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "formats/qcow2/qcow2_bitmaps.h"
#include "formats/qcow2/qcow2_header_io.h"
#include "formats/qcow2/qcow2_snapshots.h"

namespace platter::qcow2 {

namespace {
constexpr uint64_t kSliceBytes = 64 * kKiB;
constexpr size_t kL2CacheBytes = 16 * kMiB;
}  // namespace

Qcow2Layer::Qcow2Layer(Parts parts)
    : file_(std::move(parts.file)),
      data_file_(std::move(parts.data_file)),
      cipher_(std::move(parts.cipher)),
      format_(parts.header),
      snapshots_(std::move(parts.snapshots)),
      name_(fmt::format("qcow2 '{}'", file_->name())),
      info_only_(parts.info_only),
      slice_bytes_(std::min(format_.cluster_size(), kSliceBytes)),
      slice_entries_(slice_bytes_ / format_.l2_entry_size()),
      info_(std::move(parts.info)),
      header_(std::move(parts.header)),
      metadata_(format_.cluster_size()),
      bitmaps_(std::make_unique<Qcow2Bitmaps>(*this, std::move(parts.bitmaps))),
      l1_(std::move(parts.l1)),
      l2_(*file_, "L2 table", static_cast<uint32_t>(slice_bytes_), kL2CacheBytes) {}

Qcow2Layer::~Qcow2Layer() { Close(); }

Snapshotter* Qcow2Layer::snapshotter() { return snapshotter_.get(); }

Bitmapper* Qcow2Layer::bitmapper() { return bitmaps_.get(); }

void Qcow2Layer::Close() {
  if (!changing_) return;
  // On failure the bitmaps stay marked: nobody trusts them.
  (void)bitmaps_->StopTracking();
  // The first flush frees what was retired, the second one writes those refcounts.
  for (int i = 0; i < 2; ++i) {
    if (!Flush().has_value()) return;
    if (!allocator_->dirty()) break;
  }
  (void)allocator_->Trim();
}

Result<> Qcow2Layer::PrepareToWrite() {
  TRY(CheckLayout(format_));
  if (format_.refcount_table_clusters == 0) {
    return Fail(Code::kCorrupt, "there is no refcount table");
  }
  if (cipher_ && !IsAligned(info_.size, Cipher::kSector)) {
    return Fail(Code::kUnsupported, "an encrypted disk of {} bytes, which are no whole sectors",
                info_.size);
  }
  TRY(AddMetadata());
  allocator_ = std::make_unique<Allocator>(*file_, format_, pins_, metadata_);
  TRY(allocator_->Open());
  snapshotter_ = std::make_unique<Qcow2Snapshots>(*this);
  TRY(metadata_.Seal(allocator_->file_size()));
  return TRY(allocator_->CountsPastEnd()) ? CheckNotCut() : Result<>();
}

// Refuses an image of whose data the file does not hold the place any more: when it grows, zeros or
// somebody else's bytes would be there.
Result<> Qcow2Layer::CheckNotCut() {
  if (placed()) return {};
  const uint64_t end = allocator_->file_size(), span = slice_entries_ << format_.cluster_bits;
  for (uint64_t index = 0; index < l1_.size(); ++index) {
    const uint64_t table = TRY(DecodeL1(format_, l1_[index], index));
    if (table == 0) continue;
    const Store::Run run = TRY(file_->FindRun(table));
    if (!run.data && run.length >= cluster_size()) continue;
    for (uint64_t at = 0; at < cluster_size(); at += slice_bytes_) {
      auto slice = TRY_AS(fmt::format("L1 entry {}", index), l2_.Get(table + at));
      uint64_t guest = index * format_.l2_span() + at / slice_bytes_ * span;
      for (const Cluster& cluster : TRY(ReadClusters(slice, {guest, span}))) {
        bool holds = cluster.kind == ClusterKind::kCompressedUnit || cluster.allocated != 0;
        if (holds && cluster.host >= end) {
          return Fail(Code::kCorrupt,
                      "the file has been cut: the data of guest offset {:#x} was at {:#x}, and it "
                      "ends at {:#x}; what is left can be read",
                      guest, cluster.host, end);
        }
        guest += cluster_size();
      }
    }
  }
  return {};
}

Result<> Qcow2Layer::AddMetadata() {
  auto table = [](uint64_t offset, uint64_t entries) { return Range{offset, entries * 8}; };
  metadata_.AddTable({0, cluster_size()}, "the header");
  metadata_.AddTable(table(format_.l1_offset, format_.l1_size), "the L1 table");
  metadata_.AddTable(table(format_.refcount_table_offset, format_.refcount_table_entries()),
                     "the refcount table");
  // The snapshot table is at least as long as its fixed parts.
  metadata_.AddTable({format_.snapshots_offset, format_.snapshot_count * sizeof(DiskSnapshot)},
                     "the snapshot table");
  for (const Snapshot& snapshot : snapshots_) {
    metadata_.AddTable(table(snapshot.l1_offset, snapshot.l1_size), "a snapshot's L1 table");
  }
  if (format_.crypto) {
    metadata_.AddTable({format_.crypto->offset, format_.crypto->length}, "the LUKS header");
  }
  if (format_.bitmaps) {
    metadata_.AddTable({format_.bitmaps->directory_offset, format_.bitmaps->directory_size},
                       "the bitmap directory");
  }
  for (const Bitmap& bitmap : bitmaps_->list()) {
    metadata_.AddTable(table(bitmap.table_offset, bitmap.table_size), "a bitmap's table");
  }
  for (uint64_t i = 0; i < l1_.size(); ++i) {
    uint64_t offset = TRY(DecodeL1(format_, l1_[i], i));
    if (offset != 0) metadata_.AddCluster(offset);
  }
  return {};
}

Result<> Qcow2Layer::CheckInside(Range want) const {
  if (info_only_) return Fail(Code::kRefused, "opened for information only");
  if (!want.empty() && FitsIn(want.offset, want.length, info_.size)) return {};
  return Fail(Code::kOutOfRange, "{:#x}+{:#x} is not inside the disk of {:#x} bytes", want.offset,
              want.length, info_.size);
}

// What every change begins with. No lock is held.
Result<> Qcow2Layer::CheckWritable(Range want) {
  if (!info_.writable) return Fail(Code::kReadOnly, "opened for reading");
  TRY(CheckInside(want));
  TRY(BeginWriting());
  return FlushIfCrowded();
}

Result<> Qcow2Layer::BeginWriting() {
  if (writing_.load(std::memory_order_acquire)) return {};
  TRY(BeginChange());
  std::lock_guard flush(flush_mutex_);
  if (writing_) return {};
  TRY(bitmaps_->StartTracking());
  if (data_file_) {
    uint64_t size = TRY(data_file_->Size());
    if (size < info_.size) TRY(data_file_->Resize(info_.size));
    data_end_ = std::max(size, info_.size);
  }
  writing_.store(true, std::memory_order_release);
  return {};
}

// What comes before any write to the file.
Result<> Qcow2Layer::BeginChange() {
  if (changing_.load(std::memory_order_acquire)) return {};
  std::lock_guard flush(flush_mutex_);
  if (changing_) return {};
  Header header = header_;
  header.autoclear &= kKnownAutoclear;
  if (header.autoclear != header_.autoclear) {
    TRY(WriteHeaderLocked(header));
    TRY(file_->Sync());
  }
  TRY(allocator_->CoverLastCluster());
  changing_.store(true, std::memory_order_release);
  return {};
}

// No Sync. Under flush_mutex_.
Result<> Qcow2Layer::WriteHeaderLocked(const Header& header) {
  TRY(PutHeader(*file_, header));
  header_ = header;
  return {};
}

}  // namespace platter::qcow2
