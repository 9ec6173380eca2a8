// The header is in one sector, which a disk writes whole or not at all.
#include "formats/vdi/vdi_set_parent.h"

#include "formats/vdi/vdi_create.h"
#include "formats/vdi/vdi_layer.h"

namespace platter::vdi {

Result<> SetVdiParent(Store& store, const OpenOptions& /*open*/,
                      const std::optional<Reference>& parent,
                      const std::optional<ParentFile>& file) {
  if (!store.writable()) return Fail(Code::kReadOnly, "'{}' is opened for reading", store.name());
  Header header = TRY(ReadHeader(store));
  if (parent && header.type == ImageType::kFixed) {
    return Fail(Code::kUnsupported, "a fixed image holds everything itself: it has no parent");
  }
  if (parent) {
    TRY(NameParent(file, header));
    if (!header.differencing()) header.type = ImageType::kDifferencing;
  } else {
    header.parent_id = header.parent_modification = ImageId{};
    if (header.differencing()) header.type = ImageType::kDynamic;
  }
  TRY_AS("header", store.Write(0, ConstBytes(BuildHeader(header))));
  return store.Sync();
}

}  // namespace platter::vdi
