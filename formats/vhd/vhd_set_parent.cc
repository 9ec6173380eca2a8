// The header is longer than the sector that a disk writes whole, so a new one is written behind
// everything, with the new paths, and the footer names it:
//
//   ... blocks | footer          the copy at the start is made good, Sync
//   ... blocks | header | paths  over the footer: the copy stands in for it; Sync
//   ... blocks | header | paths | footer     which counts from now on; Sync, then the copy
//
// The old header's place is never used again: some KiB.
#include "formats/vhd/vhd_set_parent.h"

#include "formats/vhd/vhd_image.h"
#include "formats/vhd/vhd_parent.h"

namespace platter::vhd {
namespace {

Result<> MoveHeader(Store& store, Image& image, const ParentRecord& parent) {
  if (!image.copy_good) {
    TRY_AS("copy of the footer", store.Write(0, AsBytes(EncodeFooter(image.footer))));
    TRY(store.Sync());
  }
  const uint64_t at = RoundUp(image.tail.value_or(image.file_size), kSector);
  const uint64_t paths = at + sizeof(DiskHeader), end = paths + parent.bytes();
  DiskHeader header = image.disk_header;
  TRY(parent.Write(store, paths, header));
  SealHeader(header);
  TRY(store.Write(at, AsBytes(header)));
  TRY(store.Sync());
  image.footer.data_offset = at;
  const DiskFooter footer = EncodeFooter(image.footer);
  TRY_AS("footer", store.Write(end, AsBytes(footer)));
  TRY(store.Sync());
  TRY_AS("copy of the footer", store.Write(0, AsBytes(footer)));
  return store.Sync();
}

}  // namespace

Result<> SetVhdParent(Store& store, const OpenOptions& open, const std::optional<Reference>& parent,
                      const std::optional<ParentFile>& file) {
  if (!store.writable()) return Fail(Code::kReadOnly, "'{}' is opened for reading", store.name());
  const FooterAndSize found = TRY(ReadFooter(store, open));
  const bool differencing = found.footer.type == DiskType::kDifferencing;
  if (!differencing && !parent) return {};
  if (!parent) {
    return Fail(Code::kUnsupported,
                "a VHD with a parent cannot do without one: convert it to have all in one image");
  }
  if (!differencing) {
    return Fail(Code::kUnsupported,
                "the image was made without a parent, and cannot be given one: make an overlay");
  }
  if (store.caps().block_device) return Fail(Code::kUnsupported, "a VHD on a device");
  OpenedImage opened = TRY(ReadImage(store, open));
  return MoveHeader(store, opened.image, TRY(RecordOf(file)));
}

}  // namespace platter::vhd
