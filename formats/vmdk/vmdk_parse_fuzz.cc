// Headers, footers and descriptors of arbitrary bytes.
#include <cstdint>
#include <cstdlib>

#include "formats/vmdk/vmdk_descriptor.h"
#include "formats/vmdk/vmdk_info.h"
#include "formats/vmdk/vmdk_parse.h"

namespace platter::vmdk {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void ParseHeaders(ConstBytes input) {
  auto geometry = ParseSparse(input);
  if (!geometry.has_value()) return;
  Require(geometry->grain > 0 && geometry->table_entries > 0);
  Require(geometry->directory_entries >= geometry->capacity / geometry->table_span());
  for (uint64_t at = 0; at + 8 <= input.size() && at < 4096; at += 8) {
    uint64_t entry = *LoadAt<le64>(input, at);
    (void)DecodeGrain(*geometry, geometry->entry_size() == 8 ? entry : entry & UINT32_MAX)
        .has_value();
    (void)DecodeTable(*geometry, geometry->entry_size() == 8 ? entry : entry & UINT32_MAX)
        .has_value();
  }
  if (input.size() > kSector) {
    (void)ParseFooter(*geometry, input.subspan(kSector)).has_value();
    (void)ParseSeVolatile(input.subspan(kSector)).has_value();
  }
}

void ParseText(std::string_view text) {
  auto d = ParseDescriptor(text);
  if (!d.has_value()) return;
  (void)MakeInfo(*d, nullptr);
  std::string changed = WithCid(*d, 0x1234abcd);
  auto again = ParseDescriptor(changed);
  Require(again.has_value() && again->sectors() == d->sectors());
}

}  // namespace
}  // namespace platter::vmdk

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  ConstBytes input = std::as_bytes(std::span(data, size));
  vmdk::ParseHeaders(input);
  vmdk::ParseText(AsText(input));
  return 0;
}
