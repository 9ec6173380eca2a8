// Arbitrary bytes as each kind of compressed file: unpacked from the start, by the index, and in
// small pieces. Whatever comes out has to be what the store says of itself.
#include <cstdlib>
#include <vector>

#include "io/memory_store.h"
#include "io/unpack/unpacked_store.h"

namespace platter {
namespace {

constexpr uint64_t kMost = 4 * kMiB;

void Require(bool condition) {
  if (!condition) std::abort();
}

void TryAs(ConstBytes input, Packing packing, bool brief) {
  auto store = OpenUnpacked(std::make_unique<MemoryStore>(input), packing,
                            {.most = kMost, .given = true, .brief = brief, .memory = 16 * kMiB});
  if (!store.has_value()) return;
  std::vector<std::byte> piece(5000);
  (void)(*store)->Read(0, Bytes(piece).first(1)).has_value();
  auto size = (*store)->Size();
  if (!size.has_value() || *size > kMost) return;
  bool whole = true;
  for (uint64_t at = 0; at < *size; at += piece.size()) {
    Bytes part = Bytes(piece).first(std::min<uint64_t>(piece.size(), *size - at));
    whole = (*store)->Read(at, part).has_value() && whole;
  }
  for (uint64_t at = 0; whole && at < *size;) {
    auto run = (*store)->FindRun(at);
    Require(run.has_value() && run->length > 0 && run->length <= *size - at);
    at += run->length;
  }
  Require(!(*store)->Read(*size, Bytes(piece).first(1)).has_value());
}

}  // namespace
}  // namespace platter

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  if (size == 0) return 0;
  ConstBytes input = std::as_bytes(std::span(data, size));
  // The first byte chooses: most bytes are invalid as all but one kind.
  const auto choice = std::to_integer<unsigned>(input[0]);
  TryAs(input.subspan(1), static_cast<Packing>(choice % 4), (choice & 4) != 0);
  return 0;
}
