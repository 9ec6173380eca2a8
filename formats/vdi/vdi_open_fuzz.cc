// A whole image of arbitrary bytes. A repair leaves nothing that it said it had mended.
#include <algorithm>
#include <cstdint>

#include "formats/testing/open_fuzz.h"
#include "formats/vdi/vdi.h"
#include "formats/vdi/vdi_parse.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::vdi;
  ConstBytes input = std::as_bytes(std::span(data, size));
  // Into memory: copies of hostile blocks would fill all of it.
  auto header = ParseHeader(input.first(std::min<size_t>(input.size(), kSector)));
  const bool small = header.has_value() && header->stride() <= kMiB;
  UseImage(kVdiFormat, MemoryStore(input), input,
           {.options = {}, .resize = small, .repair = small, .repairs_all = true});
  return 0;
}
