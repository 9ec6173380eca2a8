// Opening: from a store to a VdiLayer.
#include <algorithm>
#include <array>
#include <utility>

#include "formats/vdi/vdi_info.h"
#include "formats/vdi/vdi_layer.h"

namespace platter::vdi {
namespace {

// Whether the image names a parent has to agree with its type: read without the parent that it
// needs, it would show zeros for data.
Result<> CheckParent(const Header& header) {
  if (header.differencing() && IsNil(header.parent_id)) {
    return Fail(Code::kCorrupt, "the image type is {}, but it names no parent",
                TypeName(header.type));
  }
  if (!header.differencing() && !IsNil(header.parent_id)) {
    return Fail(Code::kCorrupt, "the image type is {}, but it names {} as its parent",
                TypeName(header.type), GuidText(header.parent_id));
  }
  return {};
}

Result<std::unique_ptr<Layer>> Open(std::unique_ptr<Store> file, const OpenOptions& options) {
  if (!options.snapshot.empty()) {
    return Fail(Code::kUnsupported, "VDI has no snapshots inside an image");
  }
  if (options.writable && !file->writable()) {
    return Fail(Code::kReadOnly, "'{}' is opened for reading", file->name());
  }
  VdiLayer::Parts parts;
  parts.header = TRY(ReadHeader(*file));
  parts.info = MakeInfo(parts.header);
  parts.info.writable = options.writable;
  parts.info_only = options.info_only;
  parts.fresh = options.fresh;
  parts.file = std::move(file);
  if (!options.info_only) TRY(CheckParent(parts.header));
  auto layer = std::make_unique<VdiLayer>(std::move(parts));
  if (!options.info_only) TRY(layer->Prepare());
  return layer;
}

}  // namespace

Result<Header> ReadHeader(Store& file) {
  std::array<std::byte, kSector> head{};
  Bytes there = Bytes(head).first(std::min<uint64_t>(head.size(), TRY(file.Size())));
  TRY_AS("header", file.Read(0, there));
  return ParseHeader(there);
}

Result<std::unique_ptr<Layer>> OpenVdi(std::unique_ptr<Store> store, const OpenOptions& options) {
  for (const auto& [option, value] : options.options) {
    return Fail(Code::kUnsupported, "there is no option '{}' when opening", Printable(option));
  }
  return Open(std::move(store), options);
}

}  // namespace platter::vdi
