#include "io/unpack/decoder.h"

#include <array>

#include "base/math.h"

namespace platter {

namespace {
constexpr std::array<std::string_view, 4> kNames = {"gzip", "xz", "zstd", "bzip2"};
}  // namespace

std::string_view PackingName(Packing packing) { return kNames[static_cast<size_t>(packing)]; }

std::optional<Packing> FindPacking(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Packing>(i);
  }
  return std::nullopt;
}

Result<std::unique_ptr<Decoder>> MakeDecoder(Packing packing, uint64_t memory) {
  switch (packing) {
    case Packing::kGzip: return internal::MakeGzipDecoder();
    case Packing::kXz: return internal::MakeXzDecoder(memory);
    case Packing::kZstd: return internal::MakeZstdDecoder(memory);
    case Packing::kBzip2: return internal::MakeBzip2Decoder();
  }
  return Fail(Code::kUnsupported, "unknown compression");
}

std::unexpected<Error> internal::TooMuchMemory(uint64_t wanted, uint64_t memory) {
  return Fail(Code::kUnsupported, "unpacking takes {} MiB of memory, more than the {} MiB allowed",
              DivideUp(wanted, kMiB), memory / kMiB);
}

}  // namespace platter
