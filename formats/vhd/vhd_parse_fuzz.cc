// The parsers on arbitrary bytes: what they accept keeps to what they promise, and comes back as it
// was.
#include <algorithm>
#include <cstdlib>

#include "formats/vhd/vhd_parse.h"

namespace platter::vhd {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void Footers(ConstBytes input) {
  auto footer = ParseFooter(input.first(std::min<size_t>(input.size(), kSector)));
  if (!footer.has_value()) return;
  const DiskFooter encoded = EncodeFooter(*footer);
  auto again = ParseFooter(AsBytes(encoded));
  Require(again.has_value() && again->current_size == footer->current_size);
  for (auto want : {std::optional<bool>(), std::optional(true), std::optional(false)}) {
    SizeChoice size = ChooseSize(*footer, want);
    Require(size.bytes == footer->current_size || size.from_geometry);
  }
  Require(GeometryOf(footer->current_size).bytes() <= footer->current_size);
}

// The same bytes with the checksum that they ought to have.
std::vector<std::byte> Sealed(ConstBytes input, size_t length, size_t checksum) {
  std::vector<std::byte> bytes(
      input.begin(), input.begin() + static_cast<ptrdiff_t>(std::min(input.size(), length)));
  bytes.resize(length);
  StoreAt(Bytes(bytes), checksum, be32(ChecksumOf(bytes, checksum)));
  return bytes;
}

void Headers(ConstBytes input) {
  auto header = ParseHeader(input);
  if (!header.has_value()) return;
  Require(header->block_size >= kLeastBlock && header->block_size <= kMostBlock);
  Require(header->bitmap_size() % kSector == 0 && header->table().length % kSector == 0);
  Require(header->bitmap_size() * uint64_t{8} * kSector >= header->block_size);
  Require(header->locators.size() <= kLocators);
}

void BitRuns(ConstBytes input) {
  uint64_t bits = std::min<uint64_t>(input.size(), 64) * 8;
  for (uint64_t at = 0; at < bits;) {
    uint64_t run = RunOfBits(input, at, bits);
    Require(run > 0 && at + run <= bits);
    Require(at + run == bits || BitAt(input, at) != BitAt(input, at + run));
    at += run;
  }
}

}  // namespace
}  // namespace platter::vhd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::vhd;
  ConstBytes input = std::as_bytes(std::span(data, size));
  Footers(input);
  Footers(Sealed(input, kSector, offsetof(DiskFooter, checksum)));
  Headers(input);
  Headers(Sealed(input, sizeof(DiskHeader), offsetof(DiskHeader, checksum)));
  if (auto batmap = ParseBatmap(input, size)) Require(batmap->map.length * 8 >= size);
  for (std::string_view code : {"W2ku", "W2ru", "MacX", "Wi2k", "Wi2r", "Mac "}) {
    auto path = PathOfLocator(code, input);
    Require(!path || !path->empty());
  }
  BitRuns(input);
  return 0;
}
