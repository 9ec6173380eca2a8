// The index of an xz file, read by liblzma from the end of each of its streams.
#include <algorithm>
#include <array>

#include "io/buffer.h"
#include "io/unpack/index.h"
#include "io/unpack/lzma.h"

namespace platter::internal {
namespace {

constexpr uint64_t kIndexMemory = 32 * kMiB;
constexpr size_t kMostBlocks = 65536;

struct FreeIndex {
  void operator()(lzma_index* index) const { lzma_index_end(index, nullptr); }
};
using IndexPtr = std::unique_ptr<lzma_index, FreeIndex>;

IndexPtr LoadIndex(Store& packed, uint64_t size) {
  LzmaStream stream;
  lzma_index* index = nullptr;
  if (lzma_file_info_decoder(stream.get(), &index, kIndexMemory, size) != LZMA_OK) return nullptr;
  Buffer buffer(16 * kKiB);
  stream->avail_in = 0;
  uint64_t at = 0;
  while (true) {
    if (stream->avail_in == 0) {
      Bytes chunk = buffer.bytes().first(std::min<uint64_t>(buffer.size(), size - at));
      if (chunk.empty() || !packed.Read(at, chunk)) return nullptr;
      stream->next_in = reinterpret_cast<const uint8_t*>(chunk.data());
      stream->avail_in = chunk.size();
      at += chunk.size();
    }
    switch (lzma_code(stream.get(), LZMA_RUN)) {
      case LZMA_OK: break;
      case LZMA_SEEK_NEEDED:
        at = stream->seek_pos;
        stream->avail_in = 0;
        if (at > size) return nullptr;
        break;
      case LZMA_STREAM_END: return IndexPtr(index);
      default: return nullptr;  // the library has freed what it had
    }
  }
}

// Bytes that the block at `at` takes to unpack; nullopt if its header does not tell.
std::optional<uint64_t> MemoryOfBlock(Store& packed, Range host, lzma_check check) {
  std::array<std::byte, LZMA_BLOCK_HEADER_SIZE_MAX> header;
  Bytes bytes = Bytes(header).first(std::min<uint64_t>(header.size(), host.length));
  if (!packed.Read(host.offset, bytes)) return std::nullopt;
  const auto first = std::to_integer<uint32_t>(header[0]);
  if (first == 0 || lzma_block_header_size_decode(first) > bytes.size()) return std::nullopt;
  std::array<lzma_filter, LZMA_FILTERS_MAX + 1> filters;
  lzma_block block{};
  block.version = 1;
  block.check = check;
  block.filters = filters.data();
  block.header_size = lzma_block_header_size_decode(first);
  if (lzma_block_header_decode(&block, nullptr, reinterpret_cast<const uint8_t*>(header.data())) !=
      LZMA_OK) {
    return std::nullopt;
  }
  uint64_t usage = lzma_raw_decoder_memusage(filters.data());
  lzma_filters_free(filters.data(), nullptr);
  if (usage == UINT64_MAX) return std::nullopt;
  return usage;
}

}  // namespace

std::optional<UnpackIndex> ReadXzIndex(Store& packed) {
  auto size = packed.Size();
  if (!size || *size == 0) return std::nullopt;
  IndexPtr loaded = LoadIndex(packed, *size);
  if (!loaded) return std::nullopt;
  UnpackIndex index;
  index.size = lzma_index_uncompressed_size(loaded.get());
  if (lzma_index_block_count(loaded.get()) > kMostBlocks) return index;

  lzma_index_iter block;
  lzma_index_iter_init(&block, loaded.get());
  while (!lzma_index_iter_next(&block, LZMA_INDEX_ITER_BLOCK)) {
    const Range host{block.block.compressed_file_offset, block.block.total_size};
    const Range guest{block.block.uncompressed_file_offset, block.block.uncompressed_size};
    if (block.stream.flags == nullptr) return std::nullopt;
    auto memory = MemoryOfBlock(packed, host, block.stream.flags->check);
    if (!memory) return std::nullopt;
    index.memory = std::max(index.memory, *memory);
    if (guest.empty()) continue;
    index.blocks.push_back({.host = host,
                            .guest = guest,
                            .unpadded = block.block.unpadded_size,
                            .check = static_cast<uint8_t>(block.stream.flags->check)});
    if (guest.length > UnpackIndex::kMostBlock) {
      index.blocks.clear();
      break;
    }
  }
  return index;
}

}  // namespace platter::internal
