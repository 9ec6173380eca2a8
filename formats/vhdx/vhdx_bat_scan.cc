#include "formats/vhdx/vhdx_bat_scan.h"

#include <algorithm>
#include <vector>

#include "base/bytes.h"
#include "base/endian.h"

namespace platter::vhdx {

Result<> ScanBat(Store& file, Range bat, Range entries,
                 const std::function<Result<>(uint64_t, uint64_t)>& look) {
  constexpr uint64_t kPiece = 256 * kKiB;
  const uint64_t end = entries.end() * 8;
  std::vector<std::byte> piece(std::min(kPiece, entries.length * 8));
  for (uint64_t at = entries.offset * 8; at < end;) {
    Store::Run run = TRY_AS("BAT", file.FindRun(bat.offset + at));
    uint64_t next = std::min(RoundDown(at + std::min(run.length, end), 8), end);
    if (!run.data && next > at) {
      at = next;
      continue;
    }
    Bytes part = Bytes(piece).first(std::min(kPiece, end - at));
    TRY_AS("BAT", file.Read(bat.offset + at, part));
    for (uint64_t i = 0; i < part.size(); i += 8) {
      uint64_t raw = *LoadAt<le64>(part, i);
      if (raw != 0) TRY(look((at + i) / 8, raw));
    }
    at += part.size();
  }
  return {};
}

}  // namespace platter::vhdx
