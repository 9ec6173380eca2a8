// Arbitrary bytes as a tar archive: members lie inside, one after the other.
#include <cstdlib>

#include "io/memory_store.h"
#include "io/tar.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  ConstBytes input = std::as_bytes(std::span(data, size));
  (void)ParsePaxRecords(input).has_value();
  // Checksums are hard to guess: they are put right here.
  std::vector<std::byte> archive(input.begin(), input.end());
  for (size_t at = 0; at + kTarBlock <= archive.size(); at += kTarBlock) {
    Bytes block = Bytes(archive).subspan(at, kTarBlock);
    if (IsZero(block)) continue;
    unsigned sum = 8 * ' ';
    for (size_t i = 0; i < kTarBlock; ++i) {
      if (i < 148 || i >= 156) sum += std::to_integer<unsigned>(block[i]);
    }
    std::string text = fmt::format("{:06o}", sum);
    text += '\0';
    text += ' ';
    std::ranges::copy(AsBytes(std::string_view(text)), block.begin() + 148);
  }
  MemoryStore store{ConstBytes(archive)};
  auto members = ReadTar(store);
  if (!members.has_value()) return 0;
  uint64_t end = 0;
  for (const TarMember& member : *members) {
    if (member.data.offset < end || !FitsIn(member.data.offset, member.data.length, size)) abort();
    end = member.data.end();
  }
  return 0;
}
