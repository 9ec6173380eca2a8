#include "formats/qcow2/qcow2_set_parent.h"

#include "formats/qcow2/qcow2_header_io.h"

namespace platter::qcow2 {

Result<> SetQcow2Parent(Store& store, const OpenOptions& /*open*/,
                        const std::optional<Reference>& parent,
                        const std::optional<ParentFile>& file) {
  if (!store.writable()) return Fail(Code::kReadOnly, "'{}' is opened for reading", store.name());
  Header header = TRY(ReadHeader(store));
  if (header.incompatible & kCorrupt) {
    return Fail(Code::kCorrupt, "the image is marked as corrupt: repair it with check first");
  }
  if (parent && header.data_file_raw()) {
    return Fail(Code::kUnsupported, "an image with raw external data can have no parent");
  }
  header.autoclear &= kKnownAutoclear;
  header.has_backing = parent.has_value();
  header.backing_name = parent ? parent->name : std::string();
  header.backing_format = parent ? parent->format : std::string();
  if (parent && header.backing_format.empty() && file) header.backing_format = file->info.format;
  TRY(PutHeader(store, header));
  return store.Sync();
}

}  // namespace platter::qcow2
