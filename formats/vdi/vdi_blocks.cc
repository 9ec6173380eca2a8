#include "formats/vdi/vdi_blocks.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "io/buffer.h"

namespace platter::vdi {

namespace {
constexpr uint64_t kPiece = kMiB;  // bytes of map or data at a time
}

Result<> ReadMap(Store& file, const Header& header,
                 const std::function<Result<>(uint32_t, std::span<const le32>)>& look) {
  const uint64_t end = TRY(file.Size());
  if (!FitsIn(header.map_offset, header.map_bytes(), end)) {
    return Fail(Code::kCorrupt,
                "the block map ({} entries at {:#x}) reaches past the end of the file ({:#x})",
                header.blocks, header.map_offset, end);
  }
  std::vector<le32> entries(std::min<uint64_t>(header.blocks, kPiece / 4));
  for (uint64_t first = 0; first < header.blocks; first += entries.size()) {
    std::span<le32> piece(entries.data(),
                          std::min<uint64_t>(entries.size(), header.blocks - first));
    TRY_AS("block map", file.Read(header.map_offset + first * 4, std::as_writable_bytes(piece)));
    TRY(look(static_cast<uint32_t>(first), piece));
  }
  return {};
}

void BlockSet::EachGap(uint64_t end, const std::function<bool(uint32_t, uint32_t)>& run) const {
  end = std::min(end, size_);
  for (uint64_t at = 0; at < end;) {
    // Whole words at once: a large set is mostly full.
    if (at % 64 == 0 && words_[at / 64] == ~uint64_t{0}) {
      at += 64;
      continue;
    }
    if (Has(at)) {
      ++at;
      continue;
    }
    uint64_t first = at;
    while (at < end && !Has(at)) at += at % 64 == 0 && words_[at / 64] == 0 ? 64 : 1;
    at = std::min(at, end);
    if (!run(static_cast<uint32_t>(first), static_cast<uint32_t>(at - first))) return;
  }
}

Result<> WriteEntry(Store& file, const Header& header, uint32_t block, uint32_t entry) {
  return file.Write(header.map_offset + uint64_t{block} * 4, AsBytes(le32(entry)))
      .WithPrefix("block map");
}

Result<> CopyBlock(Store& file, const Header& header, uint32_t from, uint32_t to) {
  const uint64_t source = header.HostBlock(from).offset - header.block_extra;
  const uint64_t target = header.HostBlock(to).offset - header.block_extra;
  Buffer buffer(std::min(kPiece, header.stride()));
  for (uint64_t at = 0; at < header.stride(); at += buffer.size()) {
    Bytes piece = buffer.bytes().first(std::min<uint64_t>(buffer.size(), header.stride() - at));
    TRY_AS(fmt::format("host block {}", from), file.Read(source + at, piece));
    TRY_AS(fmt::format("host block {}", to), file.Write(target + at, ConstBytes(piece)));
  }
  return {};
}

Result<> MoveIntoHoles(Store& file, const Header& header, std::span<const Run> holes,
                       uint32_t used) {
  struct Move {
    uint32_t block, to;
  };
  std::vector<Move> moves;
  auto hole = holes.begin();
  uint32_t taken = 0;  // of *hole
  TRY(ReadMap(file, header, [&](uint32_t first, std::span<const le32> entries) -> Result<> {
    for (size_t i = 0; i < entries.size(); ++i) {
      if (!IsHostBlock(entries[i]) || entries[i] < used) continue;
      while (hole != holes.end() && taken == hole->count) {
        ++hole;
        taken = 0;
      }
      if (hole == holes.end() || hole->first + taken >= used) {
        return Fail(Code::kCorrupt, "block {} has no place below host block {}", first + i, used);
      }
      uint32_t to = hole->first + taken++;
      TRY(CopyBlock(file, header, entries[i], to));
      moves.push_back({static_cast<uint32_t>(first + i), to});
    }
    return {};
  }));
  if (moves.empty()) return {};
  TRY(file.Sync());
  for (const Move& move : moves) TRY(WriteEntry(file, header, move.block, move.to));
  return file.Sync();
}

}  // namespace platter::vdi
