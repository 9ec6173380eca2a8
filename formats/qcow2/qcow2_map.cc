// Map: from guest bytes to extents.
#include <algorithm>

#include "formats/qcow2/qcow2_layer.h"
#include "io/codec/cipher.h"

namespace platter::qcow2 {

Result<> Qcow2Layer::CheckRange(Range want) const {
  if (want.empty() || !FitsIn(want.offset, want.length, info_.size)) {
    return Fail(Code::kOutOfRange, "bytes {} to {} are outside the disk ({} bytes)", want.offset,
                want.end(), info_.size);
  }
  return {};
}

Result<uint64_t> Qcow2Layer::SliceOffset(uint64_t guest) const {
  uint64_t l1_index = guest / header_.l2_span();
  uint64_t table = TRY(DecodeL1(header_, l1_[l1_index], l1_index));
  if (table == 0) return 0;
  return table + guest % header_.l2_span() / slice_span() * slice_bytes();
}

Result<TableCache::Ref> Qcow2Layer::FindSlice(Lock& lock, uint64_t guest) {
  TableCache::Ref loaded;  // kept through the retry, so that nobody evicts it in between
  while (true) {
    uint64_t at = TRY(SliceOffset(guest));
    if (at == 0) return TableCache::Ref();
    if (TableCache::Ref slice = l2_.TryGet(at)) return slice;
    lock.unlock();
    Result<TableCache::Ref> got = l2_.Get(at);
    lock.lock();
    if (!got)
      return std::move(got).WithPrefix(fmt::format("L1 entry {}", guest / header_.l2_span()));
    loaded = std::move(*got);
  }
}

L2Entry Qcow2Layer::LoadEntry(const TableCache::Ref& slice, uint64_t guest) const {
  uint64_t at = guest % slice_span() / header_.cluster_size() * header_.l2_entry_size();
  L2Entry entry;
  entry.descriptor = *LoadAt<be64>(slice.bytes(), at);
  if (header_.extended_l2()) entry.bitmap = *LoadAt<be64>(slice.bytes(), at + 8);
  return entry;
}

void Qcow2Layer::StoreEntry(TableCache::Ref& slice, uint64_t guest, L2Entry entry) {
  uint64_t at = guest % slice_span() / header_.cluster_size() * header_.l2_entry_size();
  Bytes bytes = slice.Edit({at, header_.l2_entry_size()});
  StoreAt(bytes, 0, be64(entry.descriptor));
  if (header_.extended_l2()) StoreAt(bytes, 8, be64(entry.bitmap));
}

// Collects extents into the caller's array, merging what continues the last one.
class Qcow2Layer::Mapper {
 public:
  Mapper(const Qcow2Layer& layer, Range want, std::span<Extent> out)
      : layer_(layer), want_(want), out_(out) {}

  size_t count() const { return count_; }
  uint64_t at() const { return count_ == 0 ? want_.offset : out_[count_ - 1].guest.end(); }
  bool full() const { return full_ || at() == want_.end(); }

  // The guest has nothing here up to `end`.
  void AddParent(uint64_t end) {
    Add({.guest = Range::FromTo(at(), std::min(end, want_.end())),
         .kind = Kind::kParent,
         .host = {},
         .codec = {}});
  }

  // The part of one cluster that is wanted.
  Result<> AddCluster(const Cluster& cluster, uint64_t guest) {
    const Header& header = layer_.header_;
    Range part = Range{guest, header.cluster_size()}.Intersect(Range::FromTo(at(), want_.end()));
    if (cluster.kind == ClusterKind::kCompressedUnit) return AddCompressed(cluster, part, guest);
    if (!header.extended_l2())
      return AddPlain(cluster, part, guest, cluster.allocated & 1, cluster.zero & 1);
    uint64_t step = header.subcluster_size();
    for (uint64_t sub = (part.offset - guest) / step;
         sub < DivideUp(part.end() - guest, step) && !full_; ++sub) {
      Range inside = part.Intersect({guest + sub * step, step});
      TRY(AddPlain(cluster, inside, guest, cluster.allocated >> sub & 1, cluster.zero >> sub & 1));
    }
    return {};
  }

 private:
  Result<> AddPlain(const Cluster& cluster, Range part, uint64_t guest, bool allocated, bool zero) {
    if (!allocated && !zero) {
      Add({.guest = part, .kind = Kind::kParent, .host = {}, .codec = {}});
      return {};
    }
    Range host{cluster.host + (part.offset - guest), part.length};
    if (zero) {
      bool kept = cluster.kind != ClusterKind::kZeroPlain && cluster.host != 0;
      Add({.guest = part,
           .kind = Kind::kZero,
           .store = kept ? &layer_.data() : nullptr,
           .host = kept ? host : Range{},
           .codec = {}});
      return {};
    }
    uint64_t size = TRY(FileSize(host.end()));
    if (host.end() > size) return AddCut(cluster, part, guest, size);
    Add({.guest = part,
         .kind = Kind::kData,
         .writable = layer_.started_ && cluster.copied && !layer_.cipher_ &&
                     !layer_.refcounts_->IsFixed(host),
         .store = &layer_.data(),
         .host = host,
         .codec = {.cipher = layer_.cipher_.get()}});
    return {};
  }

  // The file ends inside the cluster: what was never written of it reads as zeros. A cluster that
  // lies past the end as a whole was lost.
  Result<> AddCut(const Cluster& cluster, Range part, uint64_t guest, uint64_t size) {
    if (cluster.host >= size) {
      return Fail(
          Code::kCorrupt,
          "guest {:#x}: data cluster past the end of the file (offset {:#x}, file size {:#x})",
          guest, cluster.host, size);
    }
    uint64_t there = std::clamp(guest + (size - cluster.host), part.offset, part.end());
    if (there > part.offset) {
      Range head = Range::FromTo(part.offset, there);
      Add({.guest = head,
           .kind = Kind::kData,
           .store = &layer_.data(),
           .host = {cluster.host + (head.offset - guest), head.length},
           .codec = {.cipher = layer_.cipher_.get()}});
    }
    Add({.guest = Range::FromTo(there, part.end()), .kind = Kind::kZero, .host = {}, .codec = {}});
    return {};
  }

  Result<> AddCompressed(const Cluster& cluster, Range part, uint64_t guest) {
    const Header& header = layer_.header_;
    uint64_t size = TRY(FileSize(cluster.host + cluster.length));
    if (cluster.host >= size) {
      return Fail(Code::kCorrupt,
                  "guest {:#x}: compressed cluster past the end of the file (offset {:#x}, file "
                  "size {:#x})",
                  guest, cluster.host, size);
    }
    Add({.guest = part,
         .kind = Kind::kData,
         .store = &layer_.data(),
         .host = {cluster.host, std::min(cluster.length, size - cluster.host)},
         .codec = {.id = header.compression == kCompressionZstd ? Codec::kZstd : Codec::kDeflate,
                   .unit = static_cast<uint32_t>(header.cluster_size()),
                   .skip = static_cast<uint32_t>(part.offset - guest)}});
    return {};
  }

  // At least as much of the file as `needed` if it is there; asks the store only when in doubt.
  Result<uint64_t> FileSize(uint64_t needed) const {
    uint64_t known = layer_.file_size_.load();
    if (needed <= known) return known;
    return layer_.data().Size();
  }

  void Add(const Extent& extent) {
    if (extent.guest.empty() || full_) return;
    if (count_ > 0 && Continues(out_[count_ - 1], extent)) {
      out_[count_ - 1].guest.length += extent.guest.length;
      out_[count_ - 1].host.length += extent.host.length;
    } else if (count_ == out_.size()) {
      full_ = true;
    } else {
      out_[count_++] = extent;
    }
  }

  static bool Continues(const Extent& a, const Extent& b) {
    return a.kind == b.kind && !a.packed() && a.codec == b.codec && a.writable == b.writable &&
           a.store == b.store && (a.store == nullptr || a.host.end() == b.host.offset);
  }

  const Qcow2Layer& layer_;
  const Range want_;
  const std::span<Extent> out_;
  size_t count_ = 0;
  bool full_ = false;
};

Result<size_t> Qcow2Layer::Map(Range want, std::span<Extent> out) {
  TRY(CheckRange(want));
  sched::Yield("map");
  Mapper mapper(*this, want, out);
  Lock lock(mutex_);
  while (!mapper.full()) {
    uint64_t at = mapper.at();
    Result<TableCache::Ref> slice = FindSlice(lock, at);
    // What was mapped before an error is good; the error comes back when it is asked for.
    if (!slice)
      return mapper.count() > 0 ? Result<size_t>(mapper.count())
                                : std::unexpected(std::move(slice.error()));
    if (!*slice) {
      mapper.AddParent(RoundDown(at, header_.l2_span()) + header_.l2_span());
      continue;
    }
    uint64_t slice_end = RoundDown(at, slice_span()) + slice_span();
    while (!mapper.full() && mapper.at() < slice_end) {
      uint64_t guest = RoundDown(mapper.at(), header_.cluster_size());
      Result<Cluster> cluster = DecodeL2(header_, LoadEntry(*slice, guest), guest);
      Result<> added = cluster ? mapper.AddCluster(*cluster, guest)
                               : std::unexpected(std::move(cluster.error()));
      if (!added)
        return mapper.count() > 0 ? Result<size_t>(mapper.count())
                                  : std::unexpected(std::move(added.error()));
    }
  }
  return mapper.count();
}

size_t Qcow2Layer::TryMap(Range want, std::span<Extent> out) {
  if (!CheckRange(want)) return 0;
  Lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return 0;
  Mapper mapper(*this, want, out);
  while (!mapper.full()) {
    uint64_t at = mapper.at();
    Result<uint64_t> offset = SliceOffset(at);
    if (!offset) break;
    if (*offset == 0) {
      mapper.AddParent(RoundDown(at, header_.l2_span()) + header_.l2_span());
      continue;
    }
    TableCache::Ref slice = l2_.TryGet(*offset);
    if (!slice) break;
    uint64_t slice_end = RoundDown(at, slice_span()) + slice_span();
    while (!mapper.full() && mapper.at() < slice_end) {
      uint64_t guest = RoundDown(mapper.at(), header_.cluster_size());
      Result<Cluster> cluster = DecodeL2(header_, LoadEntry(slice, guest), guest);
      if (!cluster || !mapper.AddCluster(*cluster, guest)) return mapper.count();
    }
  }
  return mapper.count();
}

}  // namespace platter::qcow2
