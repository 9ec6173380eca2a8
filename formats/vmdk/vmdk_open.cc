// Opening: from a store to the parts of a VmdkLayer. Nothing is written here.
//
// The store is a descriptor, or a sparse extent, which may have one embedded. With exactly one
// extent in it, an embedded descriptor means the file that it is in, whatever name it says: images
// are renamed, and streams carry names that never were files.
#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "formats/vmdk/vmdk_info.h"
#include "formats/vmdk/vmdk_layer.h"
#include "io/codec/codec.h"

namespace platter::vmdk {
namespace {

constexpr uint64_t kMostDescriptor = 4 * kMiB;  // bytes of text

Result<std::string> ReadText(Store& file, Range place) {
  std::string text(place.length, '\0');
  TRY_AS("descriptor", file.Read(place.offset, std::as_writable_bytes(std::span(text))));
  return text;
}

class Opening {
 public:
  Opening(Store& file, const OpenOptions& options, bool to_check)
      : options_(options), writable_(options.writable && !to_check) {
    parts_.file = &file;
    parts_.pins = std::make_unique<PinSet>();
    parts_.info_only = options.info_only;
    parts_.fresh = options.fresh;
  }

  Result<VmdkLayer::Parts> Run() {
    size_ = TRY(parts_.file->Size());
    std::array<std::byte, kSector> head{};
    uint64_t there = std::min<uint64_t>(size_, head.size());
    TRY_AS("header", parts_.file->Read(0, Bytes(head).first(there)));
    embedded_ = SparseKindOf(ConstBytes(head).first(there)).has_value();
    if (embedded_) {
      TRY(OpenSelf());
    } else {
      TRY(ReadDescriptor({0, size_}));
    }
    if (!options_.info_only) TRY(OpenExtents());
    TRY(Describe());
    if (options_.writable && !parts_.file->writable()) {
      return Fail(Code::kReadOnly, "'{}' is opened for reading", parts_.file->name());
    }
    parts_.info.writable = options_.writable;
    TRY(PrepareStream());
    return std::move(parts_);
  }

 private:
  const Descriptor& descriptor() const { return parts_.descriptor; }

  Result<> ReadDescriptor(Range place) {
    if (!FitsIn(place.offset, place.length, size_)) {
      return Fail(Code::kCorrupt, "the descriptor at {:#x}+{:#x} is not inside the file ({:#x})",
                  place.offset, place.length, size_);
    }
    if (place.length > kMostDescriptor) {
      return Fail(Code::kUnsupported, "a descriptor of {} bytes (at most {})", place.length,
                  kMostDescriptor);
    }
    std::string text = TRY(ReadText(*parts_.file, place));
    parts_.descriptor = TRY(ParseDescriptor(text));
    return {};
  }

  // The opened file is a sparse extent.
  Result<> OpenSelf() {
    self_ = TRY(SparseExtent::Open(*parts_.file, writable_, *parts_.pins, 1));
    const SparseGeometry& g = self_->geometry();
    if (!g.descriptor.empty()) {
      TRY(ReadDescriptor(g.descriptor));
      parts_.embedded = g.descriptor;
    } else {
      ExtentLine line;
      line.type = g.kind == SparseKind::kHosted ? ExtentLine::kSparse
                  : g.kind == SparseKind::kCowd ? ExtentLine::kVmfsSparse
                                                : ExtentLine::kSeSparse;
      line.sectors = g.capacity / kSector;
      parts_.descriptor.extents.push_back(line);
    }
    // The header's size counts where the text does not say the same but for the last grain.
    if (parts_.descriptor.extents.size() == 1) {
      ExtentLine& line = parts_.descriptor.extents[0];
      uint64_t said = line.sectors * kSector;
      if (said > g.capacity || g.capacity - said >= g.grain) line.sectors = g.capacity / kSector;
    }
    if (descriptor().has_parent()) self_->ShowParent();
    return {};
  }

  Result<> OpenExtents() {
    uint64_t at = 0;
    FindWritten();
    for (const ExtentLine& line : descriptor().extents) {
      DiskExtent extent;
      extent.guest = {at, line.sectors * kSector};
      extent.line = line;
      at = extent.guest.end();
      // An empty disk has its extent all the same: it may grow.
      if (extent.guest.empty() && descriptor().extents.size() > 1) {
        if (line.sparse()) self_.reset();
        continue;
      }
      TRY_AS(fmt::format("extent '{}'", Printable(line.name)), OpenExtent(extent));
      parts_.extents.push_back(std::move(extent));
    }
    if (self_) return Fail(Code::kCorrupt, "the descriptor names no extent of this file's kind");
    return {};
  }

  // A file that is named several times is opened once, for writing where one of them wants it.
  void FindWritten() {
    for (const ExtentLine& line : descriptor().extents) {
      if (line.access == ExtentLine::kReadWrite) written_.insert(line.name);
    }
  }

  Result<> OpenExtent(DiskExtent& extent) {
    const ExtentLine& line = extent.line;
    if (line.type == ExtentLine::kZero || line.access == ExtentLine::kNoAccess) {
      if (line.sparse()) self_.reset();
      return {};
    }
    if (line.sparse() && self_) {
      extent.store = parts_.file;
      extent.sparse = std::move(self_);
      return CheckCapacity(extent);
    }
    extent.store = TRY(OpenFile(line));
    if (line.sparse()) {
      if (!sparse_files_.insert(extent.store).second) {
        return Fail(Code::kCorrupt, "the file of a sparse extent is named twice");
      }
      bool writable = writable_ && line.access == ExtentLine::kReadWrite;
      extent.sparse = TRY(
          SparseExtent::Open(*extent.store, writable, *parts_.pins, descriptor().extents.size()));
      if (descriptor().has_parent()) extent.sparse->ShowParent();
      return CheckCapacity(extent);
    }
    extent.offset = line.offset * kSector;
    extent.end = std::min(TRY(extent.store->Size()), extent.offset + extent.guest.length);
    bool device = descriptor().create_type == "fullDevice";
    if (device && !extent.store->caps().block_device) {
      return Fail(Code::kCorrupt, "is a file, where createType \"fullDevice\" means a device");
    }
    return {};
  }

  Result<> CheckCapacity(const DiskExtent& extent) {
    uint64_t capacity = extent.sparse->geometry().capacity;
    if (capacity >= extent.guest.length) return {};
    return Fail(Code::kCorrupt, "its header says {} bytes, the descriptor {}", capacity,
                extent.guest.length);
  }

  Result<Store*> OpenFile(const ExtentLine& line) {
    auto found = opened_.find(line.name);
    if (found != opened_.end()) return found->second;
    if (!options_.opener) {
      return Fail(Code::kRefused, "the image consists of several files, and may open none here");
    }
    Reference reference = MakeReference(descriptor(), Reference::kData, line.name, false);
    bool writable = options_.writable && written_.contains(line.name);
    parts_.others.push_back(TRY(options_.opener->OpenReference(reference, writable)));
    return opened_[line.name] = parts_.others.back().get();
  }

  // Info: of the first sparse extent what belongs to all.
  Result<> Describe() {
    const SparseGeometry* sparse = self_ ? &self_->geometry() : nullptr;
    for (const DiskExtent& extent : parts_.extents) {
      if (!sparse && extent.sparse) sparse = &extent.sparse->geometry();
    }
    parts_.info = MakeInfo(descriptor(), sparse);
    // What makes the disk's units whole: grains of all extents in one raster.
    for (const DiskExtent& extent : parts_.extents) {
      bool fits = !extent.sparse || (extent.sparse->geometry().grain == parts_.info.unit &&
                                     IsAligned(extent.guest.offset, parts_.info.unit));
      if (!fits) parts_.info.unit = static_cast<uint32_t>(kSector);
    }
    std::set<std::string> told;
    if (embedded_ && descriptor().extents.size() == 1) return {};
    for (const ExtentLine& line : descriptor().extents) {
      if (line.name.empty() || !told.insert(line.name).second) continue;
      Reference reference = MakeReference(descriptor(), Reference::kData, line.name, false);
      reference.format = line.flat() ? "raw" : "vmdk";
      parts_.info.references.push_back(std::move(reference));
    }
    return {};
  }

  Result<> PrepareStream() {
    bool fresh = options_.writable && options_.fresh && !options_.info_only;
    if (!fresh || descriptor().create_type != "streamOptimized" || parts_.extents.size() != 1 ||
        !parts_.extents[0].sparse) {
      return {};
    }
    parts_.extents[0].sparse->BeginStream();
    parts_.info.compressed_units = true;
    parts_.info.only_packed = true;
    parts_.info.compression = CodecName(Codec::kZlib);
    return {};
  }

  const OpenOptions& options_;
  const bool writable_;  // through the extents
  VmdkLayer::Parts parts_;
  uint64_t size_ = 0;
  bool embedded_ = false;
  std::unique_ptr<SparseExtent> self_;  // the opened file, until an extent is found to be it
  std::map<std::string, Store*> opened_;
  std::set<std::string> written_;
  std::set<Store*> sparse_files_;
};

}  // namespace

Result<VmdkLayer::Parts> OpenParts(Store& file, const OpenOptions& options, bool to_check) {
  return Opening(file, options, to_check).Run();
}

Result<std::unique_ptr<Layer>> OpenVmdk(std::unique_ptr<Store> store, const OpenOptions& options) {
  for (const auto& [option, value] : options.options) {
    return Fail(Code::kUnsupported, "there is no option '{}' when opening", Printable(option));
  }
  VmdkLayer::Parts parts = TRY(OpenParts(*store, options, false));
  parts.owned = std::move(store);
  return std::make_unique<VmdkLayer>(std::move(parts));
}

}  // namespace platter::vmdk
