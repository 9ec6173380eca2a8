#include "tools/hash_disk.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "io/buffer.h"
#include "io/codec/content_hash.h"
#include "io/codec/hash.h"
#include "tools/scan.h"

namespace platter {

Result<std::string> HashDisk(Layer& disk, unsigned threads, Progress& progress) {
  constexpr uint64_t kLeaf = ContentHash::kBlock;
  ContentHash hash(disk.info().size);
  ScanOptions options{
      .threads = threads, .align = kLeaf, .chunk = 16 * kLeaf, .progress = &progress};
  TRY(Scan(disk, options, [&](const ScanChunk& chunk) -> Result<ScanFinish> {
    uint64_t leaves = DivideUp(chunk.range.length, kLeaf);
    if (chunk.zero)
      return ScanFinish(
          [&hash, leaves]() -> Result<> { return hash.AddZeros(leaves), Result<>(); });
    Buffer buffer(chunk.range.length);
    TRY(Read(disk, chunk.range.offset, buffer.bytes()));
    std::vector<Sha256Digest> digests;
    for (uint64_t at = 0; at < chunk.range.length; at += kLeaf) {
      digests.push_back(ContentHash::Leaf(
          std::as_const(buffer).bytes().subspan(at, std::min(kLeaf, chunk.range.length - at))));
    }
    return ScanFinish([&hash, digests = std::move(digests)]() -> Result<> {
      for (const Sha256Digest& digest : digests) hash.AddLeaf(hash.next(), digest);
      return {};
    });
  }));
  return ContentHash::Print(hash.Finish());
}

Result<std::string> PlainHashDisk(Layer& disk, unsigned threads, Progress& progress) {
  static const std::vector<std::byte> kZeros(1 << 20);
  Sha256 hash;
  ScanOptions options{.threads = threads, .progress = &progress};
  TRY(Scan(disk, options, [&](const ScanChunk& chunk) -> Result<ScanFinish> {
    uint64_t length = chunk.range.length;
    if (chunk.zero) {
      return ScanFinish([&, length]() -> Result<> {
        for (uint64_t left = length; left > 0;) {
          if (progress.cancel) return Fail(Code::kRefused, "cancelled");
          uint64_t step = std::min<uint64_t>(left, kZeros.size());
          hash.Update(std::span(kZeros).first(step));
          left -= step;
        }
        return {};
      });
    }
    auto buffer = std::make_shared<Buffer>(length);
    TRY(Read(disk, chunk.range.offset, buffer->bytes()));
    return ScanFinish(
        [&hash, buffer]() -> Result<> { return hash.Update(buffer->bytes()), Result<>(); });
  }));
  return "sha256:" + Hex(hash.Finish());
}

}  // namespace platter
