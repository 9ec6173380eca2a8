#include "formats/qcow2/qcow2_layer.h"

#include <algorithm>

#include "formats/qcow2/qcow2_check.h"
#include "formats/qcow2/qcow2_crypto.h"
#include "formats/qcow2/qcow2_info.h"

namespace platter::qcow2 {
namespace {

constexpr size_t kL2CacheBytes = 32 * kMiB;

Result<Header> ReadHeader(Store& store) {
  uint64_t size = TRY(store.Size());
  std::vector<std::byte> head(std::min<uint64_t>(size, 32));
  TRY_AS("header", store.Read(0, Bytes(head)));
  head.resize(std::min(size, TRY(HeaderBytesNeeded(head))));
  TRY_AS("header", store.Read(0, Bytes(head)));
  return ParseHeader(head);
}

// The table's length shows only while it is parsed: read more until it is all there.
Result<std::vector<Snapshot>> ReadSnapshots(Store& store, const Header& header) {
  if (header.snapshot_count == 0) return std::vector<Snapshot>();
  uint64_t size = TRY(store.Size());
  if (header.snapshots_offset >= size) {
    return Fail(Code::kCorrupt,
                "snapshot table: offset {:#x} is past the end of the file ({:#x} bytes)",
                header.snapshots_offset, size);
  }
  uint64_t most = std::min(size - header.snapshots_offset, kMaxSnapshotTableBytes);
  for (uint64_t length = 64 * kKiB;; length *= 4) {
    std::vector<std::byte> table(std::min(length, most));
    TRY_AS("snapshot table", store.Read(header.snapshots_offset, Bytes(table)));
    auto snapshots = ParseSnapshots(header, table, nullptr);
    if (snapshots || table.size() == most) return snapshots;
  }
}

Result<std::vector<Bitmap>> ReadBitmaps(Store& store, const Header& header) {
  if (!header.bitmaps) return std::vector<Bitmap>();
  uint64_t size = TRY(store.Size());
  if (!FitsIn(header.bitmaps->directory_offset, header.bitmaps->directory_size, size)) {
    return Fail(Code::kCorrupt,
                "bitmap directory: {} bytes at {:#x} are not inside the file ({:#x} bytes)",
                header.bitmaps->directory_size, header.bitmaps->directory_offset, size);
  }
  std::vector<std::byte> directory(header.bitmaps->directory_size);
  TRY_AS("bitmap directory", store.Read(header.bitmaps->directory_offset, Bytes(directory)));
  return ParseBitmaps(header, directory);
}

Result<const Snapshot*> FindSnapshot(const std::vector<Snapshot>& snapshots,
                                     const std::string& name) {
  for (auto field : {&SnapshotInfo::id, &SnapshotInfo::name}) {
    for (const Snapshot& snapshot : snapshots) {
      if (snapshot.info.*field == name) return &snapshot;
    }
  }
  return Fail(Code::kOutOfRange, "there is no snapshot '{}'", Printable(name));
}

}  // namespace

Qcow2Layer::Qcow2Layer(std::unique_ptr<Store> store, Header header)
    : store_(std::move(store)),
      header_(std::move(header)),
      l2_(*store_, "L2 table", static_cast<uint32_t>(slice_bytes()), kL2CacheBytes) {}

Qcow2Layer::~Qcow2Layer() {
  // What was not flushed was not acknowledged; this spares a clean exit its leaked clusters.
  if (refcounts_) (void)Flush().has_value();
}

Result<std::unique_ptr<Qcow2Layer>> Qcow2Layer::Open(std::unique_ptr<Store> store,
                                                     const OpenOptions& options) {
  Header header = TRY(ReadHeader(*store));
  bool writable = options.writable && options.snapshot.empty();
  if (writable && (header.incompatible & kCorrupt)) {
    return Fail(Code::kCorrupt,
                "the image is marked corrupt: it may be read, but only be written by a repair");
  }
  if (writable && (header.incompatible & kDirty)) {
    TRY_AS("repair of a dirty image", RepairDirty(*store));
    header = TRY(ReadHeader(*store));
  }
  std::vector<Snapshot> snapshots = TRY(ReadSnapshots(*store, header));
  std::vector<Bitmap> bitmaps = TRY(ReadBitmaps(*store, header));

  std::unique_ptr<Qcow2Layer> layer(new Qcow2Layer(std::move(store), std::move(header)));
  layer->info_ = TRY(MakeInfo(layer->header_, snapshots, bitmaps));
  layer->info_.writable = writable;
  layer->writable_ = writable;
  layer->bitmaps_ = std::move(bitmaps);
  TRY(AddLuksFacts(layer->header_, *layer->store_, layer->info_));
  if (options.info_only) return layer;
  TRY(layer->OpenTables(options, snapshots));
  if (writable) TRY(layer->OpenForWriting(snapshots));
  return layer;
}

Result<> Qcow2Layer::OpenTables(const OpenOptions& options,
                                const std::vector<Snapshot>& snapshots) {
  if (header_.has_data_file()) {
    if (!options.opener)
      return Fail(Code::kRefused,
                  "the image has an external data file, which may not be opened here");
    Reference reference{Reference::kData, header_.data_file_name.value_or(""), "raw"};
    data_store_ = TRY(options.opener->OpenReference(reference, writable_));
  }
  file_size_ = TRY(data().Size());
  cipher_ = TRY(OpenCipher(header_, *store_, options.secret));
  if (options.snapshot.empty()) return ReadL1(header_.l1_offset, header_.l1_size);
  const Snapshot* snapshot = TRY(FindSnapshot(snapshots, options.snapshot));
  info_.size = snapshot->info.disk_size;
  return ReadL1(snapshot->l1_offset, snapshot->l1_size)
      .WithPrefix("snapshot " + Printable(options.snapshot));
}

Result<> Qcow2Layer::ReadL1(uint64_t offset, uint32_t entries) {
  uint64_t size = TRY(store_->Size()), bytes = uint64_t{entries} * 8;
  if (bytes > kMaxL1Bytes || !FitsIn(offset, bytes, size)) {
    return Fail(Code::kCorrupt, "L1 table: {} bytes at {:#x} are not inside the file ({:#x} bytes)",
                bytes, offset, size);
  }
  if (entries < header_.l1_entries_for(info_.size)) {
    return Fail(Code::kCorrupt, "L1 table: {} entries cannot map a disk of {} bytes", entries,
                info_.size);
  }
  std::vector<be64> raw(entries);
  TRY_AS("L1 table", store_->Read(offset, std::as_writable_bytes(std::span(raw))));
  l1_.assign(raw.begin(), raw.end());
  l1_offset_ = offset;
  l1_dirty_.assign(DivideUp(bytes, 512), false);
  return {};
}

Result<> Qcow2Layer::OpenForWriting(const std::vector<Snapshot>& snapshots) {
  if (!store_->writable()) return Fail(Code::kReadOnly, "the file is open for reading only");
  TRY(CheckLayout(header_));
  if (cipher_ && !IsAligned(info_.size, Cipher::kSector)) {
    return Fail(Code::kUnsupported,
                "an encrypted disk of {} bytes, no multiple of 512, cannot be written", info_.size);
  }
  std::vector<Range> fixed = {{0, header_.cluster_size()},
                              {header_.l1_offset, uint64_t{header_.l1_size} * 8}};
  if (header_.snapshot_count > 0)
    fixed.push_back({header_.snapshots_offset, header_.cluster_size()});
  for (const Snapshot& snapshot : snapshots)
    fixed.push_back({snapshot.l1_offset, uint64_t{snapshot.l1_size} * 8});
  if (header_.crypto) fixed.push_back({header_.crypto->offset, header_.crypto->length});
  if (header_.bitmaps)
    fixed.push_back({header_.bitmaps->directory_offset, header_.bitmaps->directory_size});
  std::erase_if(fixed, [](Range range) { return range.empty(); });
  refcounts_ = std::make_unique<Refcounts>(*store_, header_, std::move(fixed),
                                           [this](uint64_t offset, uint32_t clusters) -> Result<> {
                                             std::lock_guard lock(header_mutex_);
                                             Header header = header_;
                                             header.refcount_table_offset = offset;
                                             header.refcount_table_clusters = clusters;
                                             TRY(WriteHeader(header));
                                             header_.refcount_table_offset = offset;
                                             header_.refcount_table_clusters = clusters;
                                             return {};
                                           });
  return refcounts_->Load();
}

}  // namespace platter::qcow2

namespace platter {
Result<std::unique_ptr<Layer>> OpenQcow2(std::unique_ptr<Store> store, const OpenOptions& options) {
  return TRY(qcow2::Qcow2Layer::Open(std::move(store), options));
}
}  // namespace platter
