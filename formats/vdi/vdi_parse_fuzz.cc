// The header's parser against arbitrary bytes: what it accepts is consistent, and is written back
// as what was read.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "formats/vdi/vdi_parse.h"

namespace platter::vdi {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void Examine(const Header& header) {
  Require(header.block_size > 0 && IsAligned(header.block_size, kSector));
  Require(BlocksFor(header.size, header.block_size) <= header.blocks);
  Require(header.map_offset >= header.end());
  Require(header.data_offset >= header.map_offset + header.map_bytes());
  for (uint32_t block : {0u, 1u, header.blocks, kDiscarded - 1}) {
    Range host = header.HostBlock(block);
    Require(host.length == header.block_size && host.end() > host.offset);
  }
  Require(header.BlocksInFile(header.data_offset + header.stride()) == 1);
}

}  // namespace
}  // namespace platter::vdi

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::vdi;
  ConstBytes input = std::as_bytes(std::span(data, std::min<size_t>(size, kSector)));
  auto header = ParseHeader(input);
  if (!header.has_value()) return 0;
  Examine(*header);
  std::vector<std::byte> built = BuildHeader(*header);
  Require(built.size() == header->end());
  auto again = ParseHeader(built);
  Require(again.has_value());
  Require(BuildHeader(*again) == built);
  Require(again->size == header->size && again->map_offset == header->map_offset &&
          again->data_offset == header->data_offset && again->id == header->id &&
          again->parent_id == header->parent_id && again->allocated == header->allocated);
  return 0;
}
