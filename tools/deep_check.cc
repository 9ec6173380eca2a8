#include "tools/deep_check.h"

#include <algorithm>
#include <memory>

#include "io/buffer.h"
#include "tools/scan.h"

namespace platter {
namespace {

struct Unreadable {
  Range range;
  std::string reason;
};

// Which parts of a chunk cannot be read: extent by extent, so that one bad
// cluster is named and its neighbours are not.
Result<std::vector<Unreadable>> FindUnreadable(Layer& disk, Range range, Bytes scratch) {
  std::vector<Unreadable> found;
  for (uint64_t at = range.offset; at < range.end();) {
    Extent extent;
    Pin pin = disk.Hold();
    Result<size_t> mapped = disk.Map(Range::FromTo(at, range.end()), std::span(&extent, 1));
    if (!mapped) {  // nothing says where the next readable byte is
      found.push_back({Range::FromTo(at, range.end()), mapped.error().text()});
      return found;
    }
    Range part = extent.guest;
    if (extent.kind == Kind::kData) {
      Result<> read = Read(disk, part.offset, scratch.first(part.length));
      if (!read) found.push_back({part, read.error().text()});
    }
    at = part.end();
  }
  return found;
}

}  // namespace

Result<> DeepCheck(Layer& disk, std::string_view what, unsigned threads, Progress& progress,
                   CheckReport& report) {
  ScanOptions options;
  options.threads = threads;
  options.progress = &progress;
  return Scan(disk, options, [&](const ScanChunk& chunk) -> Result<ScanFinish> {
    if (chunk.zero) return ScanFinish();
    Buffer buffer(chunk.range.length);
    if (Read(disk, chunk.range.offset, buffer.bytes())) return ScanFinish();
    std::vector<Unreadable> found = TRY(FindUnreadable(disk, chunk.range, buffer.bytes()));
    return ScanFinish([&report, what, found = std::move(found)]() -> Result<> {
      for (const Unreadable& bad : found) {
        report.Add(CheckReport::Finding::kCorruption,
                   fmt::format("{}guest {:#x}, {} bytes cannot be read: {}", what, bad.range.offset,
                               bad.range.length, bad.reason));
      }
      return {};
    });
  });
}

}  // namespace platter
