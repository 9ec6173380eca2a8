// Arbitrary bytes as a file with something around an image: unwrapped for info and for reading, and
// the image that comes out probed. Nothing outside of the input may be opened.
#include <array>
#include <cstdlib>

#include "cow/unwrap.h"
#include "formats/format.h"
#include "formats/signatures.h"
#include "io/memory_store.h"

namespace platter {
namespace {

void TryUnwrap(ConstBytes input, bool info_only) {
  UnwrapOptions options;
  options.info_only = info_only;
  options.limits = {.most = kMiB, .given = true, .memory = 16 * kMiB};
  std::set<FileId> seen;
  std::vector<std::string> warnings;
  // No such folder: an OVF by itself finds nothing beside it.
  auto image = Unwrap(std::make_unique<MemoryStore>(input), "/nowhere/fuzz", options,
                      Gate(GatePolicy{}), seen, &warnings);
  if (!seen.empty()) abort();
  if (!image.has_value()) return;
  (void)Probe(*image->store).has_value();
  std::array<std::byte, 1000> piece;
  auto size = image->store->Size();
  if (size.has_value() && *size >= piece.size()) {
    (void)image->store->Read(*size - piece.size(), Bytes(piece)).has_value();
  }
}

}  // namespace
}  // namespace platter

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  ConstBytes input = std::as_bytes(std::span(data, size));
  TryUnwrap(input, true);
  TryUnwrap(input, false);
  return 0;
}
