// A whole image of arbitrary bytes.
//
// The first byte says which checksums are made right first (footer, copy, header), without which
// hardly any input would get further.
#include <vector>

#include "formats/testing/open_fuzz.h"
#include "formats/vhd/vhd.h"
#include "formats/vhd/vhd_parse.h"

namespace platter::vhd {
namespace {

void Seal(std::vector<std::byte>& image, uint64_t at, size_t length, size_t checksum) {
  if (!FitsIn(at, length, image.size())) return;
  Bytes part = Bytes(image).subspan(at, length);
  StoreAt(part, checksum, be32(ChecksumOf(part, checksum)));
}

std::vector<std::byte> ImageOf(ConstBytes input) {
  if (input.empty()) return {};
  std::vector<std::byte> image(input.begin() + 1, input.end());
  auto which = std::to_integer<uint8_t>(input[0]);
  if (which & 1) Seal(image, 0, kSector, offsetof(DiskFooter, checksum));
  if ((which & 2) && image.size() >= kSector) {
    Seal(image, image.size() - kSector, kSector, offsetof(DiskFooter, checksum));
  }
  if (which & 4) {
    auto at = LoadAt<be64>(image, offsetof(DiskFooter, data_offset));
    if (at) Seal(image, *at, sizeof(DiskHeader), offsetof(DiskHeader, checksum));
  }
  return image;
}

}  // namespace
}  // namespace platter::vhd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::vhd;
  ConstBytes input = std::as_bytes(std::span(data, size));
  const std::vector<std::byte> bytes = ImageOf(input);
  UseImage(kVhdFormat, MemoryStore(ConstBytes(bytes)), input, {});
  return 0;
}
